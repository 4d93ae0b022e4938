"""Sweeps through Hydra's other launchers, and with workers: processes that import imgcls again."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from imgcls import train
from tests.conftest import Command
from tests.trainings import SMALL

Search = Callable[..., tuple[list[dict[str, str]], str]]
ONE_EPOCH = [*SMALL, "trainer.max_epochs=1", "debug=off", "optim.lr=tag(log,interval(1e-4,1e-1))"]


@pytest.fixture
def search(
    run_command: Command,
    tmp_path: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Search:
    """Run a search in this process; the rows of its `sweep.csv`, and what it and its processes printed."""

    def run(*overrides: str) -> tuple[list[dict[str, str]], str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        GlobalHydra.instance().clear()
        words = ["-m", "hydra/sweeper=optuna", *ONE_EPOCH, f"data.root={pictures}", "hydra.sweep.dir=sweep"]
        assert run_command(train, *words, *overrides) == 0
        with (tmp_path / "sweep" / "sweep.csv").open() as file:
            return list(csv.DictReader(file)), capfd.readouterr().out

    return run


def check(folder: Path, rows: list[dict[str, str]], trials: int) -> None:
    """All trials are complete, each in its own folder, and nothing is left elsewhere."""
    assert [(row["trial"], row["state"], row["folder"]) for row in rows] == [
        (str(number), "complete", str(number)) for number in range(trials)
    ]
    for number in range(trials):
        assert (folder / "sweep" / str(number) / "metrics.json").is_file()
    assert {path.name for path in folder.iterdir()} == {"sweep", "pictures"}


def test_joblib(tmp_path: Path, search: Search) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    from joblib.externals.loky import get_reusable_executor

    try:
        launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
        rows, printed = search(*launcher, "search.trials=1", "search/pruner=median")
    finally:
        get_reusable_executor().shutdown()
    check(tmp_path, rows, 1)
    assert "1/1 trial" in printed


def test_submitit(tmp_path: Path, search: Search) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    rows, _ = search("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", "search.trials=1")
    check(tmp_path, rows, 1)
    assert (tmp_path / "sweep" / ".submitit").is_dir(), "it ran there"


def test_workers(tmp_path: Path, search: Search) -> None:
    rows, printed = search("search.workers=2", "search.trials=2")
    check(tmp_path, rows, 2)
    assert printed.count(" trial ") >= 2
    for number in (1, 2):
        assert (tmp_path / "sweep" / f"worker-{number}.log").is_file()
