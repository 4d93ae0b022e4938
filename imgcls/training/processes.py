"""One process for each device of this machine, all working on one run folder.

Lightning would start the other processes with the command line of this one, which goes wrong under Hydra's multirun
and in notebooks; here each gets the composed configuration as a file.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.system.files import atomic_write_text
from imgcls.system.interrupts import Interrupted, StopSignals
from imgcls.system.machine import threads_of_each

GRACE = 20.0  # seconds that the processes have to write their checkpoint, or to notice that one of them died


def started_from_outside() -> bool:
    """Whether this is already one of several processes: ours, torchrun's, or Slurm's."""
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def train_in_processes(config: Mapping[str, Any], folder: Path, count: int, micro_batch_size: int | None) -> None:
    """Train `config` in `count` processes and wait for them.

    Raises what ended them: UserError, Interrupted, OutOfMemory, or RuntimeError for a crash (its traceback is on
    stderr).
    """
    job, outcome = folder / ".processes.json", folder / ".outcome.json"
    outcome.unlink(missing_ok=True)
    content = {"config": config, "folder": str(folder), "micro_batch_size": micro_batch_size, "parent": os.getpid()}
    atomic_write_text(job, json.dumps(content))
    with StopSignals() as stop:
        stop.deferred = True
        workers = _start(job, count)
        try:
            _wait(workers, stop)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                worker.wait()
            job.unlink(missing_ok=True)
    _raise_outcome(outcome, [worker.returncode for worker in workers], stop)


def _start(job: Path, count: int) -> list[subprocess.Popen[bytes]]:
    port = _free_port()
    threads = threads_of_each(count)
    workers = []
    for rank in range(count):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": threads,
        }
        command = [sys.executable, "-m", "imgcls.training.worker", str(job)]
        workers.append(subprocess.Popen(command, env=environment, start_new_session=True))
    return workers


def _wait(workers: list[subprocess.Popen[bytes]], stop: StopSignals) -> None:
    deadline = None
    told = False
    while any(worker.poll() is None for worker in workers):
        if stop.requested is not None and not told:
            told = True
            deadline = time.monotonic() + GRACE
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
        if deadline is None and any(worker.poll() not in (None, 0) for worker in workers):
            deadline = time.monotonic() + GRACE / 4
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _raise_outcome(outcome: Path, codes: list[int], stop: StopSignals) -> None:
    from imgcls.training.devices import OutOfMemory

    if all(code == 0 for code in codes):
        return
    if stop.requested is not None:
        raise Interrupted(stop.requested)
    if not outcome.is_file():
        raise RuntimeError(f"a training process ended with exit code {next(code for code in codes if code)}")
    ended = json.loads(outcome.read_text())
    outcome.unlink()
    if ended["kind"] == "user":
        raise UserError(ended["message"])
    if ended["kind"] == "memory":
        raise OutOfMemory(ended["size"], ended["message"])
    raise RuntimeError(f"a training process failed: {ended['message']}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
