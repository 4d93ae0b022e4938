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
from imgcls.training.mixture import calibrated_losses, choose, mix
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


def test_what_is_not_preferred_must_be_clearly_better() -> None:
    noise = np.random.default_rng(0).normal(size=100)
    mixtures = [np.full(100, 1.0), np.full(100, 0.9)]
    assert choose([*mixtures, np.full(100, 1.1)], preferred=2) == 1
    assert choose([*mixtures, 0.85 + noise - noise.mean()], preferred=2) == 1, "0.05 with a standard error of 0.1"
    assert choose([*mixtures, 0.6 + noise - noise.mean()], preferred=2) == 2
    assert choose([*mixtures, np.full(100, 0.8), np.full(100, 0.7)], preferred=2) == 3
    assert choose([np.full(5, np.inf), np.full(5, 2.0)], preferred=1) == 1
    assert choose([np.array([1.0]), np.array([0.5])], preferred=1) == 1, "a single image"


def test_confidence_does_not_count_against_a_network() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 400)
    better = generator.normal(size=(400, 4)) + 2.0 * np.eye(4)[labels]
    worse = generator.normal(size=(400, 4)) + 1.0 * np.eye(4)[labels]
    assert calibrated_losses(8 * better, labels) == pytest.approx(calibrated_losses(better, labels), abs=1e-3)
    assert calibrated_losses(8 * better, labels).mean() < calibrated_losses(worse, labels).mean()
    assert np.isinf(calibrated_losses(np.full((400, 4), np.nan), labels)).all()


def test_the_last_epoch_is_the_model_unless_its_rate_has_not_annealed(fit: Fit) -> None:
    run = fit("optim.lr=1e-5", "trainer.max_epochs=3", "checkpoint.monitor=val/loss", name="run")
    files = [run.folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt", "start.ckpt")]
    best, last, start = (read_checkpoint(file)["state_dict"] for file in files)
    share = run.metrics["finetuned_share"]
    assert run.metrics["best_epoch"] == 3, "though the largest loss, the monitored value, is that of an earlier one"
    expected = mix(start, last, share)
    assert all(torch.equal(value, expected[name]) for name, value in best.items())
    constant = fit("optim.lr=1e-5", "optim.schedule=constant", "checkpoint.monitor=val/loss", name="constant")
    worst = max(constant.history, key=lambda row: row["val/loss"])
    assert constant.metrics["best_epoch"] == worst["epoch"]


def test_a_run_killed_after_the_mixture_was_written_keeps_it(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_test", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(BaseException, match=r".*"):
            fit(name="killed")
    resumed = fit(name="killed")
    for name in ("finetuned_share", "val/loss", "test/loss"):
        assert resumed.metrics[name] == whole.metrics[name]
    states = [read_checkpoint(run.folder / "checkpoints" / "best.ckpt")["state_dict"] for run in (whole, resumed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
