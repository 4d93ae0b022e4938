"""How the processes of one machine end together. How they train together is tested in test_pipeline.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from imgcls.callbacks import checkpoints
from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.errors import UserError
from imgcls.runs.reading import read_status
from imgcls.runs.run import Run
from imgcls.system.files import sha256_of
from imgcls.system.interrupts import Interrupted
from imgcls.system.lightning_internals import batch_number
from imgcls.training.checkpoint_io import read_checkpoint
from imgcls.training.processes import _raise_outcome
from tests.processes import as_by_torchrun
from tests.trainings import SMALL, Fit

REFUSING = "data.augment.policy={_target_: tests.training.hungry.Refusing}"


@pytest.mark.usefixtures("forked_workers")
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


def test_torchruns_processes_end_together_within_an_epoch_and_resume_to_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    options = ["data.batch_size=4", "trainer.max_epochs=1", "debug=off"]
    original, validated = Checkpoints.on_train_batch_end, Checkpoints.on_validation_batch_end

    def stopped_and_resumed(name: str, *more: str) -> Run:
        """Its second process gets a signal, or all crash two steps after the checkpoint of `every_minutes`."""
        signalled = name in ("signalled", "validating")
        first, last = os.environ["RANK"] == "0", tmp_path / name / "checkpoints" / "last.ckpt"

        def ended(self: Checkpoints, trainer: Any, *args: Any) -> None:
            if batch_number(trainer) == 2 and not first and name == "signalled":
                signal.raise_signal(signal.SIGTERM)
            if batch_number(trainer) == 12 and name == "crashed":
                raise KeyError("crashed")
            original(self, trainer, *args)

        def validating(self: Checkpoints, *args: Any) -> None:
            if not first and name == "validating":
                signal.raise_signal(signal.SIGTERM)
            validated(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "on_train_batch_end", ended)
            patch.setattr(Checkpoints, "on_validation_batch_end", validating)
            if name == "validating":
                patch.setattr(checkpoints, "BATCHES_BETWEEN_LOOKS", 1)
            with pytest.raises((Interrupted, KeyError)) as end:
                fit(*options, *more, name=name)
        if signalled:
            assert isinstance(end.value, Interrupted)
            assert end.value.exit_code == (143 if first else 0), "torchrun must not end the first one"
        if first:
            assert read_status(tmp_path / name)["state"] == ("interrupted" if signalled else "failed")
            assert not last.exists() if name == "validating" else read_checkpoint(last)["global_step"] == 10
        return fit(*options, *more, name=name)

    def work() -> list[str]:
        runs = [
            fit(*options, name="whole"),
            stopped_and_resumed("signalled"),
            stopped_and_resumed("crashed", "checkpoint.every_minutes=1e-9"),
            stopped_and_resumed("validating"),
        ]
        files = [run.folder / "model" / "model.safetensors" for run in runs]
        return [sha256_of(file) for file in files] if os.environ["RANK"] == "0" else []

    whole, *others = as_by_torchrun(2, work)[0]
    assert others == [whole] * 3


def test_a_signal_to_one_process_interrupts_the_run(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="SIGTERM"):
        _raise_outcome(tmp_path / "outcome.json", 128 + signal.SIGTERM)
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        _raise_outcome(tmp_path / "outcome.json", 1)
