"""Searches with real, small trainings, from Python and from the command line."""

from __future__ import annotations

import csv
import json
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import imgcls
from imgcls.data.imagefolder import ImageFolder
from imgcls.errors import UserError
from imgcls.runs.reading import read_metrics
from imgcls.sweeps.python import Search
from tests.processes import run_and_kill
from tests.trainings import SMALL

TWO_EPOCHS = [*SMALL, "trainer.max_epochs=2", "debug=off"]
SPACE = {"optim.lr": "tag(log,interval(1e-4,1e-1))", "model.head.dropout": [0.0, 0.5]}
Overrides = list[str]


@pytest.fixture
def overrides(pictures: Path) -> Overrides:
    return [*TWO_EPOCHS, f"data.root={pictures}"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run `python -m imgcls.train -m hydra/sweeper=optuna …` in this process; its exit code."""
    from hydra.core.global_hydra import GlobalHydra

    from imgcls.train import main

    def run(*overrides: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for the processes of several devices
        monkeypatch.setattr(sys, "argv", ["imgcls.train", "-m", *overrides])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_search_from_python(overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "search"
    found = imgcls.search([*overrides, "report=true"], SPACE, folder=folder, trials=4, refit=True, pruner="median")
    assert isinstance(found, Search)
    assert [trial["state"] for trial in found.trials] == ["complete"] * 4
    best = max(found.trials, key=lambda trial: (trial["val/accuracy"], -trial["trial"]))
    assert found.best == {name: best[name] for name in SPACE}
    assert isinstance(found.best["optim.lr"], float)
    assert found.study.best_value == best["val/accuracy"]

    run = imgcls.load(folder / str(best["trial"]))
    assert run.metrics["val/accuracy"] == best["val/accuracy"]
    assert not any(name.startswith("test/") for name in run.metrics), "no trial uses the test images"
    assert not (run.folder / "predictions.csv").exists()
    assert found.refit is not None
    assert found.refit.metrics["val/accuracy"] == best["val/accuracy"], "the same training again"
    assert "test/accuracy" in found.refit.metrics

    printed = capsys.readouterr().out
    assert "4/4 trial 3: val/accuracy=" in printed
    assert "imgcls epoch=" not in printed.split("report  ")[0], "trials are quiet"
    page = (folder / "sweep.html").read_text()
    for part in ("History", "Importance", "Slices", "Parallel coordinates", 'href="0/report.html"', "optim.lr"):
        assert part in page, part
    assert "cannot be drawn" not in page
    assert [row["trial"] for row in table(folder)] == ["0", "1", "2", "3"]

    again = imgcls.compose([str(folder / "best.yaml")])
    assert again.optim.lr == found.best["optim.lr"]
    assert (again.test, again.quiet) == (True, False)
    assert dict(again.callbacks) == {}


def test_the_same_call_resumes_and_ends_at_once(overrides: Overrides, tmp_path: Path) -> None:
    first = imgcls.search(overrides, SPACE, folder=tmp_path / "search", trials=1)
    began = (tmp_path / "search" / "0" / "metrics.json").stat().st_mtime_ns
    second = imgcls.search(overrides, SPACE, folder=tmp_path / "search", trials=2)
    assert second.trials[0] == first.trials[0]
    assert (tmp_path / "search" / "0" / "metrics.json").stat().st_mtime_ns == began
    with pytest.raises(UserError, match="started with space="):
        imgcls.search(overrides, {"optim.lr": [0.1, 0.2]}, folder=tmp_path / "search")


def test_the_trials_of_a_process_open_the_pictures_once(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = ImageFolder.find

    def find(self: ImageFolder) -> Any:
        opened.append(str(self.root))
        return original(self)

    monkeypatch.setattr(ImageFolder, "find", find)
    cfg = imgcls.compose([*overrides, "trainer.max_epochs=1"])
    space = {"optim.lr": [0.1, 0.01], "data.batch_size": [8, 16]}
    found = imgcls.search(cfg, space, folder=tmp_path / "search", sampler="grid")
    assert [(trial["optim.lr"], trial["data.batch_size"]) for trial in found.trials] == [
        (0.1, 8),
        (0.1, 16),
        (0.01, 8),
        (0.01, 16),
    ]
    assert len(opened) == 1
    imgcls.fit(imgcls.compose([*overrides, "trainer.max_epochs=1", f"run_dir={tmp_path / 'alone'}"]))
    assert len(opened) == 2, "nothing is kept after the search"


def test_a_group_needs_the_words(overrides: Overrides, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="optim is a group"):
        imgcls.search(imgcls.compose(overrides), {"optim": ["sgd", "adam"]}, folder=tmp_path / "search")


def test_trials_that_fail(overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imgcls.training import pipeline

    original = pipeline.build_classifier

    def build(cfg: Any, *args: Any, **options: Any) -> Any:
        if cfg.optim.lr > 0.05:
            raise RuntimeError("a large rate")
        return original(cfg, *args, **options)

    monkeypatch.setattr(pipeline, "build_classifier", build)
    space = {"optim.lr": [0.1, 0.01], "seed": [0, 1]}
    overrides = [*overrides, "trainer.max_epochs=1"]
    found = imgcls.search(overrides, space, folder=tmp_path / "some", sampler="grid")
    assert [trial["state"] for trial in found.trials] == ["failed", "failed", "complete", "complete"]
    assert found.trials[0]["reason"] == "RuntimeError: a large rate"
    with pytest.raises(UserError, match=r"2 trials failed .*a large rate"):
        imgcls.search(overrides, space, folder=tmp_path / "many", sampler="grid", max_failures=2)


def test_a_search_by_command(
    command: Callable[..., int], overrides: Overrides, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = ["optim.lr=tag(log,interval(1e-4,1e-1))", "optim=sgd,adam"]
    options = ["hydra/sweeper=optuna", *overrides, *space, "search.trials=2", "search.refit=true"]
    assert command(*options) == 0
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert [row["state"] for row in table(folder)] == ["complete"] * 2
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"0", "1", "refit"}
    assert "test/accuracy" in json.loads((folder / "refit" / "metrics.json").read_text())
    printed = capfd.readouterr()
    assert "2/2 trial 1" in printed.out
    assert "Error executing" not in printed.err
    assert command(*options, "search.trials=3") == 0
    assert len(list((tmp_path / "sweeps").iterdir())) == 1, "more trials are the same search"
    assert "2 of 3 trials are finished" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("space", "complaint"),
    [
        ([], "nothing to search"),
        (["optim.lr=interval(-1,0.1)"], "optim.lr=-1.0: must be"),
        (["data.batch_size=interval(8,16)"], "Whole numbers are range"),
        (["model.name=resnet18,resnet19"], "Did you mean resnet18"),
        (["optim.lt=0.1,0.2"], "Unknown option 'optim.lt'"),
        (["optim=sgd,adm"], "Did you mean adam"),
        (["optim.lr=interval(0.1,1)", "search/sampler=grid"], "a grid needs single values"),
        (["optim.lr=interval(0.1,1)", "search.objective=test/loss"], "never searched on"),
        (["optim.lr=interval(0.1,1)", "search.storage=mysql"], "must be sqlite, journal"),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(
    command: Callable[..., int],
    overrides: Overrides,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    space: list[str],
    complaint: str,
) -> None:
    assert command("hydra/sweeper=optuna", *overrides, *space) == 2
    printed = capfd.readouterr().err
    assert complaint in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.glob("sweeps/*/0"))


def test_the_other_optuna_sweeper_does_not_take_its_place(overrides: Overrides, tmp_path: Path) -> None:
    """hydra-optuna-sweeper stores a configuration of the same name; ours is in the configuration's own folder."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(
        group="hydra/sweeper", name="optuna", node={"_target_": "not.ours"}, provider="optuna_sweeper"
    )
    try:
        import hydra

        from imgcls.config.groups import VERSION_BASE, config_dir

        with hydra.initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
            cfg = hydra.compose("train", ["hydra/sweeper=optuna"], return_hydra_config=True)
        assert cfg.hydra.sweeper._target_ == "hydra_plugins.imgcls_sweepers.optuna_sweeper.OptunaSweeper"
    finally:
        del ConfigStore.instance().repo["hydra"]["sweeper"]["optuna.yaml"]


def test_a_basic_sweep(command: Callable[..., int], overrides: Overrides, tmp_path: Path) -> None:
    assert command(*overrides, "trainer.max_epochs=1", "export.onnx=false", "optim.lr=1e-3,1e-2") == 0
    runs = sorted((tmp_path / "sweeps").glob("*/*/*/metrics.json"))
    assert [run.parent.name for run in runs] == ["0", "1"]


@pytest.mark.usefixtures("forked_workers")
def test_several_devices_keep_all_files_in_the_folder_of_the_trial(
    command: Callable[..., int], overrides: Overrides, tmp_path: Path
) -> None:
    options = ["trainer.devices=2", "trainer.max_epochs=2", "search/pruner=median", "search.trials=1"]
    assert command("hydra/sweeper=optuna", *overrides, *options, "optim.lr=interval(0.001,0.01)") == 0
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert {path.name for path in tmp_path.iterdir()} == {"sweeps", "pictures"}
    inside = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert inside == {"0", "best.yaml", "study.db", "sweep.csv", "sweep.html"}
    run = imgcls.load(folder / "0")
    assert len(run.history) == 2
    (row,) = table(folder)
    assert float(row["val/accuracy"]) == run.metrics["val/accuracy"]
    assert not list(run.folder.glob(".processes.json"))


def test_a_killed_search_is_resumed(overrides: Overrides, tmp_path: Path) -> None:
    """kill -9 at random moments of real trainings."""
    folder, trials, overrides = tmp_path / "search", 4, [*overrides, "trainer.max_epochs=3"]
    untouched = imgcls.search(overrides, SPACE, folder=tmp_path / "whole", trials=trials)
    dice, kills, code = random.Random(1), 0, -signal.SIGKILL
    while kills < 6 and code == -signal.SIGKILL:
        search = partial(imgcls.search, overrides, SPACE, folder=folder, trials=trials)
        code = run_and_kill(search, dice.uniform(0.5, 4))
        kills += code == -signal.SIGKILL
    found = imgcls.search(overrides, SPACE, folder=folder, trials=trials)
    assert kills >= 1
    assert code in (0, -signal.SIGKILL)
    assert [trial["state"] for trial in found.trials] == ["complete"] * trials
    assert len(found.study.get_trials()) == trials
    for killed, whole in zip(found.trials, untouched.trials, strict=True):
        for name in ("val/accuracy", "optim.lr", "model.head.dropout", "epochs", "best_epoch"):
            assert killed[name] == whole[name], (killed["trial"], name)


def test_trials_are_compared_by_cross_validation(overrides: Overrides, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    fixed = [*overrides, "trainer.max_epochs=1", "search.cv=2"]
    found = imgcls.search(fixed, {"optim.lr": [1e-3, 1e-2]}, folder=folder, trials=2, refit=True, sampler="grid")
    for trial in found.trials:
        folds = [read_metrics(folder / str(trial["trial"]) / "folds" / number) for number in "12"]
        assert trial["val/accuracy"] == pytest.approx(sum(fold["val/accuracy"] for fold in folds) / 2)
        assert "test/accuracy" not in folds[0]
    assert found.refit is not None
    assert not (found.refit.folder / "folds").exists(), "the best is trained once"
    assert "test/accuracy" in found.refit.metrics


def test_a_trial_is_pruned_after_a_fold(overrides: Overrides, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    fixed = [*overrides, "search.cv=3", "search.pruner.n_startup_trials=1"]
    space = {"optim.lr": [1e-2, 1e-9]}  # of which the second learns nothing
    found = imgcls.search(fixed, space, folder=folder, trials=2, sampler="grid", pruner="median")
    best, worst = found.trials
    assert (best["state"], worst["state"], worst["optim.lr"]) == ("complete", "pruned", 1e-9)
    assert "of 3 folds" in worst["reason"]
    assert not (folder / str(worst["trial"]) / "folds" / "3").exists()
