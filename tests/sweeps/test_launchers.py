"""Sweeps through Hydra's other launchers, and with workers: processes that import imgcls again."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainings import SMALL

TWO_EPOCHS = [*SMALL, "trainer.max_epochs=2", "debug=off"]
ROOT = Path(__file__).parents[2]


def search(folder: Path, pictures: Path, *overrides: str) -> tuple[list[dict[str, str]], str]:
    """The rows of `sweep.csv` of a search in `folder`, and what it printed."""
    command = [sys.executable, "-m", "imgcls.train", "-m", "hydra/sweeper=optuna", *TWO_EPOCHS, f"data.root={pictures}"]
    command += ["hydra.sweep.dir=sweep", "optim.lr=tag(log,interval(1e-4,1e-1))", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with (folder / "sweep" / "sweep.csv").open() as file:
        return list(csv.DictReader(file)), ended.stdout


def check(folder: Path, rows: list[dict[str, str]], trials: int) -> None:
    """All trials are complete, each in its own folder, and nothing is left elsewhere."""
    assert [(row["trial"], row["state"], row["folder"]) for row in rows] == [
        (str(number), "complete", str(number)) for number in range(trials)
    ]
    for number in range(trials):
        assert (folder / "sweep" / str(number) / "metrics.json").is_file()
    assert {path.name for path in folder.iterdir()} == {"sweep", "pictures"}


def test_joblib(tmp_path: Path, pictures: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    overrides = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "search.workers=2", "search.trials=2"]
    rows, printed = search(tmp_path, pictures, *overrides, "search/pruner=median")
    check(tmp_path, rows, 2)
    assert "2/2 trial" in printed


def test_submitit(tmp_path: Path, pictures: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    overrides = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", "search.trials=1"]
    rows, _ = search(tmp_path, pictures, *overrides)
    check(tmp_path, rows, 1)
    assert (tmp_path / "sweep" / ".submitit").is_dir(), "it ran there"


def test_workers(tmp_path: Path, pictures: Path) -> None:
    rows, printed = search(tmp_path, pictures, "search.workers=2", "search.trials=4")
    check(tmp_path, rows, 4)
    assert printed.count(" trial ") >= 4
    for number in (1, 2):
        assert (tmp_path / "sweep" / f"worker-{number}.log").is_file()
