"""How the processes of one machine end together. How they train together is tested in test_pipeline.py."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from imgcls.errors import UserError
from tests.trainings import SMALL, Fit

REFUSING = "data.augment.policy={_target_: tests.training.hungry.Refusing}"


def test_an_error_of_the_user_is_one_line(fit: Fit, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^These images are refused$"):
        fit(REFUSING, "trainer.devices=2", "debug=off")
    assert "elastic" not in capfd.readouterr().err
    assert not list((tmp_path / "run").glob(".*.json"))


def test_no_process_survives_a_killed_parent(tmp_path: Path, pictures: Path) -> None:
    overrides = [*SMALL, f"data.root={pictures}", f"run_dir={tmp_path / 'run'}", "trainer.devices=2", "debug=off"]
    command = [sys.executable, "-m", "imgcls.train", *overrides, "trainer.max_epochs=100000"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "metrics.csv").exists():
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(processes) >= 2
    _, alive = psutil.wait_procs(processes, timeout=30)
    for process in alive:
        process.kill()
    assert not alive
