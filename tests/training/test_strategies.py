"""FSDP in two processes on the CPU: the numbers of one process, complete checkpoints, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import imgcls
from imgcls.errors import UserError
from imgcls.runs.run import Run
from imgcls.training.checkpoint_io import read_checkpoint

SMALL = [
    "data=synthetic",
    "data.count=60",
    "data.classes=3",
    "data.image_size=160",  # required by the only small network without batch norms
    "data.batch_size=15",
    "model.name=test_vit",
    "optim=sgd",
    "optim.lr=0.02",
    "trainer.accelerator=cpu",
    "debug=off",
    "export.onnx=false",
    "report=false",
]


def fit(folder: Path, *overrides: str) -> Run:
    return imgcls.fit(imgcls.compose([*SMALL, *overrides, f"run_dir={folder}"]))


@pytest.mark.usefixtures("forked_workers")
def test_sharded_weights_give_the_numbers_of_whole_ones(tmp_path: Path) -> None:
    one = fit(tmp_path / "one", "trainer.max_epochs=2")
    sharded = ["trainer.devices=2", "trainer.strategy=fsdp"]
    two = fit(tmp_path / "two", "trainer.max_epochs=2", *sharded)
    for row, reference in zip(two.history, one.history, strict=True):
        for name in ("train/loss", "val/loss", "val/accuracy"):
            assert row[name] == pytest.approx(reference[name], rel=2e-3, abs=2e-3), name
    assert two.metrics["test/loss"] == pytest.approx(one.metrics["test/loss"], rel=2e-3)
    assert two.metrics["parameters"] == one.metrics["parameters"]
    whole, reference = (read_checkpoint(run.folder / "checkpoints" / "last.ckpt") for run in (two, one))
    for name, value in reference["state_dict"].items():
        assert torch.allclose(whole["state_dict"][name], value, atol=1e-3), name
    assert len(two.predictions) == 15
    assert len(two.predict([torch.zeros(160, 160, 3, dtype=torch.uint8).numpy()])) == 1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["optim.ema=0.9"], "optim.ema"),
        (["model.freeze=head_first"], "model.freeze"),
        (["optim.layer_decay=0.9"], "optim.layer_decay"),
        (["experiment=cifar10_accurate"], "optim.lookahead"),
        (["optim=muon"], "optim=muon"),
        (["debug=default"], "debug=off"),
    ],
)
def test_options_that_need_whole_weights_are_refused_early(options: list[str], name: str) -> None:
    with pytest.raises(UserError, match=name):
        imgcls.compose(["data=cifar10", "debug=off", "trainer.strategy=fsdp", *options])
