"""Trials that are ended early: compared and ended at the right moment, and never the promising ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import imgcls
from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.pruning import Pruning, report_step
from imgcls.sweeps.space import parse_space
from imgcls.sweeps.study import Study
from imgcls.sweeps.trials import reports_of
from tests.trainings import SMALL

CONSTANT = SimpleNamespace(schedule="constant", warmup_epochs=0.0)
EPOCHS = 9
Curve = Callable[[int], float]


def run(tmp_path: Path, pruner: Any, curves: Sequence[Curve], optim: Any = CONSTANT, **options: Any) -> list[int]:
    """The number of epochs that each trial trains, with the metric of its curve."""
    space = parse_space([f"trial=range({len(curves)})"])[0]
    search_options = SearchOptions(objectives={"val/accuracy": "max"}, trials=len(curves), storage="journal")
    study = Study("one", search_options, space, tmp_path / "sweep")
    lengths = []
    for curve in curves:
        claim = study.claim()
        assert claim is not None
        callback = Pruning(claim.folder, study.address, "one", claim.number, "val/accuracy", pruner, **options)
        for epoch in range(1, EPOCHS + 1):
            if callback.is_hopeless(epoch, EPOCHS, curve(epoch), optim):
                assert callback.file.is_file()
                study.prune(claim, "pruned")
                break
        else:
            study.complete(claim, [curve(EPOCHS)])
        lengths.append(epoch)
    study.close()
    return lengths


def flat(value: float) -> Curve:
    return lambda epoch: value


def median() -> Any:
    from optuna.pruners import MedianPruner

    return MedianPruner(n_startup_trials=2)


def test_the_worse_half_is_ended_and_the_better_one_is_not(tmp_path: Path) -> None:
    lengths = run(tmp_path, median(), [flat(0.5), flat(0.6), flat(0.3), flat(0.9), flat(0.4)])
    assert lengths == [EPOCHS, EPOCHS, 1, EPOCHS, 1]


def test_successive_halving_ends_trials_at_its_rungs(tmp_path: Path) -> None:
    from optuna.pruners import SuccessiveHalvingPruner

    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    lengths = run(tmp_path, pruner, [flat(0.9), *(flat(0.8 - 0.1 * number) for number in range(5))])
    assert lengths[0] == EPOCHS
    assert set(lengths[1:]) <= {1, 3}


@pytest.mark.parametrize(
    ("schedule", "warmup", "first"),
    [("cosine", 2.0, 3), ("onecycle", 0.0, 3), ("onecycle", 4.0, 5), ("constant", 0.0, 1)],
)
def test_no_trial_is_ended_while_its_learning_rate_rises(
    tmp_path: Path, schedule: str, warmup: float, first: int
) -> None:
    optim = SimpleNamespace(schedule=schedule, warmup_epochs=warmup)
    assert run(tmp_path, median(), [flat(0.8), flat(0.8), flat(0.1)], optim)[-1] == first


def test_the_last_epoch_is_never_the_one_that_is_pruned(tmp_path: Path) -> None:
    late = [flat(0.8), flat(0.8), lambda epoch: 0.9 if epoch < EPOCHS else 0.1]
    assert run(tmp_path, median(), late)[-1] == EPOCHS


def test_trials_of_other_lengths_are_compared_at_the_same_share_of_their_schedule() -> None:
    space = parse_space(["trainer.max_epochs=5,10,20"])[0]
    reports = reports_of(space, 10)
    assert reports == 5
    for epochs in (5, 10, 20):
        due = [report_step(epoch, epochs, reports) for epoch in range(1, epochs + 1)]
        assert [due.index(step) + 1 for step in range(1, 6)] == [epochs // 5 * step for step in range(1, 6)]
    assert reports_of(parse_space(["trainer.max_epochs=range(2,5)"])[0], 10) == 2
    assert reports_of(parse_space(["optim.lr=0.1,0.2"])[0], 12) == 12
    assert reports_of(parse_space(["optim.lr=0.1,0.2"])[0], -1) is None


def test_an_unreachable_storage_does_not_end_a_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # no folder, so that no database can be there
    callback = Pruning(tmp_path, f"sqlite:///{tmp_path}/file/study.db", "one", 0, "val/accuracy", median())
    assert callback.is_hopeless(1, 3, 0.5, CONSTANT) is False
    assert not callback.file.exists()


def test_a_pruned_training_ends_as_one_and_counts_as_one(tmp_path: Path, pictures: Path) -> None:
    overrides = [*SMALL, f"data.root={pictures}", "trainer.max_epochs=4", "debug=off"]
    overrides += ["optim.warmup_epochs=0", "optim=sgd"]
    space = {"optim.lr": [0.02, 0.021, 1e-9]}
    found = imgcls.search(
        overrides,
        space,
        folder=tmp_path / "search",
        sampler="grid",
        pruner={"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2},
        objective="val/loss",
    )
    whole, _, hopeless = found.trials
    assert (whole["state"], whole["epochs"]) == ("complete", 4)
    assert (hopeless["state"], hopeless["val/loss"]) == ("pruned", "")
    assert hopeless["epochs"] < 4
    assert "which Median prunes" in hopeless["reason"]
    run = imgcls.load(tmp_path / "search" / "2")
    assert run.status["state"] == "finished"
    assert run.status["stopped_by"] == "pruning"
    rates = [row["lr"] for row in imgcls.load(tmp_path / "search" / "0").history]
    assert run.history[0]["lr"] / 1e-9 == pytest.approx(rates[0] / 0.02), "the schedule of a whole training"
