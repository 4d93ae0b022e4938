"""The model of a fine-tuning is the mixture of its start and its best epoch that validates best."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imgcls.evaluate import evaluate
from imgcls.models.backbones import create_network
from imgcls.training import pipeline
from imgcls.training.checkpoint_io import read_checkpoint
from imgcls.training.mixture import calibrated_loss, choose, mix
from tests.trainings import Fit


@pytest.fixture
def fit(fit: Fit, tmp_path: Path) -> Fit:
    """A fine-tuning whose learning rate is far too high."""
    torch.manual_seed(0)
    file = tmp_path / "backbone.safetensors"
    save_file(create_network("test_resnet", 3).backbone.state_dict(), file)
    return functools.partial(fit, f"model.weights={file}", "trainer.max_epochs=2", "optim.lr=0.3")


def test_a_harmful_fine_tuning_leaves_the_solved_head(fit: Fit) -> None:
    frozen = fit("model.freeze=backbone", "model.solve_head=true", name="frozen")
    harmed = fit("checkpoint.average=none", name="harmed")
    run = fit(name="run")
    assert harmed.metrics["val/loss"] > frozen.metrics["val/loss"] + 0.1, "the test needs a harmful rate"
    assert run.metrics["val/loss"] <= frozen.metrics["val/loss"] + 1e-4
    assert run.metrics["finetuned_share"] < 1
    assert evaluate(run)["loss"] == pytest.approx(run.metrics["test/loss"], abs=1e-4)
    assert evaluate(run, split="val")["loss"] == pytest.approx(run.metrics["val/loss"], abs=1e-4)


def test_weights_in_between_are_the_share_of_both() -> None:
    start = {"network.w": torch.tensor([0.0, 4.0]), "network.steps": torch.tensor(0)}
    tuned = {"network.w": torch.tensor([1.0, 8.0]), "network.steps": torch.tensor(7), "loss.scale": torch.tensor(2.0)}
    mixed = mix(start, tuned, 0.25)
    assert mixed["network.w"].tolist() == [0.25, 5.0]
    assert (mixed["network.steps"].item(), mixed["loss.scale"].item()) == (7, 2.0)
    assert all(torch.equal(mix(start, tuned, 1.0)[name], value) for name, value in tuned.items())


def test_the_lowest_loss_chooses_and_a_tie_keeps_the_fine_tuning() -> None:
    assert choose({1.0: 0.5, 0.5: 0.4, 0.0: 0.6}) == 0.5
    assert choose({1.0: 0.4, 0.5: 0.4}) == 1.0


def test_confidence_does_not_count_against_a_network() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 400)
    better = generator.normal(size=(400, 4)) + 2.0 * np.eye(4)[labels]
    worse = generator.normal(size=(400, 4)) + 1.0 * np.eye(4)[labels]
    assert calibrated_loss(8 * better, labels) == pytest.approx(calibrated_loss(better, labels), rel=1e-3)
    assert calibrated_loss(8 * better, labels) < calibrated_loss(worse, labels)
    assert calibrated_loss(np.full((400, 4), np.nan), labels) == float("inf")


def test_a_run_killed_after_the_mixture_was_written_keeps_it(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_test", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(BaseException, match=r".*"):
            fit(name="killed")
    resumed = fit(name="killed")
    for name in ("finetuned_share", "val/loss", "test/loss"):
        assert resumed.metrics[name] == whole.metrics[name]
    states = [read_checkpoint(run.folder / "checkpoints" / "best.ckpt")["state_dict"] for run in (whole, resumed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
