"""Trainings with adapters: resumed to the same bits, with an average, in ordinary checkpoints and models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

import imgcls
from imgcls.errors import UserError
from imgcls.models.classifier import Classifier
from imgcls.training.checkpoint_io import read_checkpoint
from tests.trainings import Fit

LORA = ["model.adapter=lora", "model.adapter_rank=4", "optim.lr=2e-2", "model.batch_norm=frozen"]


def test_a_training_resumes_and_ends_in_an_ordinary_model(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit("debug=off", "trainer.max_epochs=1", name="first")
    options = [*LORA, f"model.weights={first.folder}", "optim.ema=0.9"]
    whole = fit(*options, name="whole")
    names = first.model.network.state_dict().keys()
    assert whole.model.network.state_dict().keys() == names
    for part in ("best", "last"):
        state = read_checkpoint(whole.folder / "checkpoints" / f"{part}.ckpt")["state_dict"]
        assert {name for name in state if name.startswith("network.")} == {f"network.{name}" for name in names}
    before, after = first.model.network.state_dict(), whole.model.network.state_dict()
    changed = {name for name in names if not torch.equal(before[name], after[name])}
    assert "backbone.layer1.0.conv1.weight" in changed
    assert not any("bn" in name or name == "backbone.conv1.0.weight" for name in changed), "all else is frozen"
    assert "Adapters and head are trained" in (whole.folder / "log.txt").read_text()
    assert imgcls.evaluate(whole)["accuracy"] == pytest.approx(whole.metrics["test/accuracy"])

    original = Classifier.on_train_epoch_start

    def die(classifier: Classifier) -> None:
        if classifier.current_epoch == 2:
            raise RuntimeError("killed")
        original(classifier)

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "on_train_epoch_start", die)
        with pytest.raises(RuntimeError, match="killed"):
            fit(*options, name="stopped")
    resumed = fit(*options, name="stopped")
    expected, found = (run.folder / "model" / "model.safetensors" for run in (whole, resumed))
    assert expected.read_bytes() == found.read_bytes()
    assert "Resuming" in (resumed.folder / "log.txt").read_text()
    best = resumed.folder / "checkpoints" / "best.ckpt"
    again = fit(f"model.weights={best}", "trainer.max_epochs=1", "debug=off", name="again")
    assert f"{best} (state_dict.network.backbone)" in (again.folder / "log.txt").read_text(), "ordinary weights"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.pretrained=false"], "model.adapter=lora adapts trained weights"),
        (["model.freeze=backbone"], "model.freeze=backbone excludes. Use one."),
        (["model.stem=small"], "would freeze the random weights of model.stem=small"),
        (["trainer.strategy=fsdp"], "needs all weights in each process. Use trainer.strategy=auto."),
        (["model.adapter_rank=0"], "model.adapter_rank=0: must be"),
        (["model.adapter=dora"], "model.adapter=dora: is not known. Did you mean lora?"),
    ],
)
def test_unfit_combinations_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        imgcls.compose(["data=imagefolder", f"data.root={tmp_path}", "model.adapter=lora", *options])


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else find(name, *more))
    with pytest.raises(UserError, match=r"model.adapter=lora needs peft: pip install 'imgcls\[lora\]'."):
        imgcls.compose(["data=imagefolder", f"data.root={tmp_path}", "model.adapter=lora"])


@pytest.mark.usefixtures("forked_workers")
def test_two_processes_give_the_numbers_and_the_model_of_one(fit: Fit) -> None:
    first = fit("debug=off", "trainer.max_epochs=1", name="first")
    # SGD: Adam's first steps are signs, which rounding can flip
    options = [*LORA, f"model.weights={first.folder}", "debug=off", "optim=sgd", "trainer.max_epochs=2"]
    options += ["checkpoint.average=none", "model.solve_head=false", "optim.lr=0.5"]
    one = fit(*options, name="one")
    two = fit(*options, "trainer.devices=2", name="two")
    for row, reference in zip(two.history, one.history, strict=True):
        for name in ("train/loss", "val/loss"):
            assert row[name] == pytest.approx(reference[name], rel=1e-3), name
    before, alone, shared = (run.model.network.backbone.state_dict() for run in (first, one, two))
    assert alone.keys() == shared.keys()
    moved = {name: float((alone[name] - before[name]).norm()) for name in alone if alone[name].is_floating_point()}
    assert sum(moved.values()) > 1e-3, "the adapters are trained and merged"
    for name, distance in moved.items():
        assert (shared[name] - alone[name]).norm() <= 0.02 * distance, name
