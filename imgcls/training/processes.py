"""One process for each device of this machine, all working on one run folder.

Lightning would start the other processes with the command line of this one, which goes wrong under Hydra's multirun
and in notebooks; here torchelastic's agent starts them, and each gets the composed configuration as a file.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.system.files import atomic_write_text
from imgcls.system.interrupts import Interrupted, StopSignals
from imgcls.system.machine import threads_of_each
from imgcls.training.devices import OutOfMemory


def is_worker() -> bool:
    """Whether this is one of several processes, started by imgcls, torchrun or Slurm."""
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def train_in_processes(config: Mapping[str, Any], folder: Path, count: int, micro_batch_size: int | None) -> None:
    """Train `config` in `count` processes and wait for them.

    A signal is passed on to them, so that they write their checkpoint; if one of them fails, the others are ended.
    The rendezvous uses a port that the system chooses.

    Raises the reason of a failure: UserError, Interrupted, OutOfMemory, or RuntimeError for a crash, whose traceback is
    on stderr.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for module in ("agent.server.api", "multiprocessing.api"):  # the outcome file holds the reason of a failure
        logging.getLogger(f"torch.distributed.elastic.{module}").setLevel(logging.CRITICAL)
    job, outcome = folder / ".processes.json", folder / ".outcome.json"
    outcome.unlink(missing_ok=True)
    content = {"config": config, "folder": str(folder), "micro_batch_size": micro_batch_size, "parent": os.getpid()}
    atomic_write_text(job, json.dumps(content))
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="imgcls",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        with StopSignals():  # at the end it also takes the signals back from the agent
            command = (f"OMP_NUM_THREADS={threads_of_each(count)}", sys.executable, "-m", "imgcls.training.worker")
            elastic_launch(launch, "env")(*command, str(job))
    except SignalException as error:
        raise Interrupted(error.sigval) from None
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        _raise_outcome(outcome, first.exitcode)
    finally:
        job.unlink(missing_ok=True)


def _raise_outcome(outcome: Path, code: int) -> None:
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # one process was stopped, and stopped all
        raise Interrupted(code - 128)
    if not outcome.is_file():
        raise RuntimeError(f"a training process ended with exit code {code}")
    failure = json.loads(outcome.read_text())
    outcome.unlink()
    if failure["kind"] == "user":
        raise UserError(failure["message"])
    if failure["kind"] == "memory":
        raise OutOfMemory(failure["size"], failure["message"])
    raise RuntimeError(f"a training process failed: {failure['message']}")
