"""Runs of heads that keep features: nothing is trained, everything else is as in other runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import imgcls
from imgcls.errors import UserError
from imgcls.models.memory import Memory
from tests.trainings import Fit


@pytest.mark.parametrize("head", ["prototype", "knn"])
def test_a_run_keeps_features_and_restores_them(head: str, fit: Fit, tmp_path: Path) -> None:
    first = fit("debug=off", name="first")
    options = [f"head={head}", f"model.weights={first.folder}", "debug=off"]
    run = fit(*options, name="filled")
    assert run.config.model.freeze == "backbone"
    assert run.metrics["epochs"] == 0, "it is filled, not trained"
    assert run.metrics["test/accuracy"] > 0.9
    layers = run.model.network.head
    assert isinstance(layers, Memory)
    assert layers.scale.item() not in (0.0, 10.0), "the scale is fitted"
    assert "each by the others" in (run.folder / "log.txt").read_text()
    torch.testing.assert_close(imgcls.evaluate(run)["accuracy"], run.metrics["test/accuracy"])
    exported = (run.folder / "model" / "model.safetensors").read_bytes()
    imgcls.export(run, onnx=False)
    assert (run.folder / "model" / "model.safetensors").read_bytes() == exported
    again = fit(*options, name="again")
    assert torch.equal(again.model.network.head.rows, layers.rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.freeze=none"], "head=prototype keeps features of a frozen backbone.* Use model.freeze=backbone."),
        (["model.feature_views=4"], "Use model.feature_views=0."),
        (["model.solve_head=false"], "It is filled, not trained: use model.solve_head=true."),
        (["task=multilabel"], "Use head=linear for images of several labels."),
        (["model.pretrained=false"], "model.freeze=backbone freezes random weights"),
    ],
)
def test_unfit_combinations_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        imgcls.compose(["data=imagefolder", f"data.root={tmp_path}", "head=prototype", *options])
