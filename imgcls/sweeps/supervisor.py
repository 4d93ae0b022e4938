"""`search.workers=N`: N helper processes that run the same command, and the supervisor that keeps them running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from imgcls.errors import UserError
from imgcls.sweeps.study import Study
from imgcls.sweeps.worker import raise_if_stopped
from imgcls.system.background import repeat
from imgcls.system.interrupts import Interrupted, StopSignals
from imgcls.system.machine import threads_of_each

HELPER = "IMGCLS_SEARCH_HELPER"  # in a helper's environment: the id of the process that started it
GRACE_SECONDS = 30.0  # that helpers have to write a checkpoint
POLL_SECONDS = 0.5  # between two looks at the study


def supervise(study: Study, arguments: Sequence[str], announce: Callable[[], None], *, share_gpus: bool = True) -> None:
    """Keep `study.options.workers` helpers running until the study is finished.

    Each imports and opens its data once and logs to `worker-N.log` in the sweep's folder.

    Args:
        arguments: of the Python interpreter, for a helper.
        announce: called repeatedly, to print what is new.
        share_gpus: whether each helper sees only its share of the GPUs.

    Raises:
        UserError: too many trials have failed, or the helpers end before they finish any.
        Interrupted: by a signal; the running trials are released.
    """
    with StopSignals() as stop:
        stop.deferred = True
        helpers = _Helpers(study, arguments, share_gpus)
        try:
            while stop.requested is None:
                announce()
                study.requeue()
                stopped = study.stopped() is not None
                if study.has_waiting and not stopped:
                    helpers.fill()
                elif not helpers.running and (stopped or study.finished):
                    break
                time.sleep(POLL_SECONDS)
        finally:
            helpers.end()
        announce()
        if stop.requested is not None:
            raise Interrupted(stop.requested)
    raise_if_stopped(study)


class _Helpers:
    def __init__(self, study: Study, arguments: Sequence[str], share_gpus: bool) -> None:
        self.study, self.arguments, self.share_gpus = study, arguments, share_gpus
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * study.options.workers
        self.failures = 0  # helpers that failed since the last finished trial
        self.done = 0

    @property
    def running(self) -> int:
        return sum(process is not None and process.poll() is None for process in self.processes)

    def fill(self) -> None:
        """Start a helper in each place where none is running."""
        done = sum(trial.state.is_finished() for trial in self.study.trials)
        if done > self.done:
            self.done, self.failures = done, 0
        left = self.study.total - done
        for number, process in enumerate(self.processes):
            if process is not None and process.poll() is None:
                continue
            if self.running >= left:
                return
            self.failures += process is not None and process.returncode != 0
            if self.failures > 2 * len(self.processes):
                raise UserError(f"The workers fail before they finish a trial; see {self._log(number)}.")
            self.processes[number] = self._start(number)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        count = len(self.processes)
        environment = {**os.environ, HELPER: str(os.getpid()), "OMP_NUM_THREADS": threads_of_each(count)}
        if self.share_gpus and (gpus := gpus_of(number, count, visible_gpus())):
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        with self._log(number).open("ab") as log:
            command = [sys.executable, *self.arguments]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _log(self, number: int) -> Path:
        return self.study.folder / f"worker-{number + 1}.log"

    def end(self) -> None:
        """Stop all helpers, by force after the grace period."""
        left = [process for process in self.processes if process is not None and process.poll() is None]
        for process in left:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in left:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def visible_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> list[str]:
    """The NVIDIA GPUs that a process may use, by their names in CUDA_VISIBLE_DEVICES; without loading torch."""
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    numbers = (file.name.removeprefix("nvidia") for file in devices.glob("nvidia[0-9]*"))
    return [str(place) for place, _ in enumerate(sorted(number for number in numbers if number.isdigit()))]


def gpus_of(worker: int, workers: int, gpus: Sequence[str]) -> list[str]:
    """The GPUs of a worker: an equal share, or one that is shared; none where there are fewer than two.

    >>> gpus_of(1, 2, ["0", "1", "2", "3"]), gpus_of(2, 3, ["0", "1"]), gpus_of(0, 2, ["0"])
    (['2', '3'], ['0'], [])
    """
    if len(gpus) < 2:
        return []
    if len(gpus) < workers:
        return [gpus[worker % len(gpus)]]
    return list(gpus[worker * len(gpus) // workers : (worker + 1) * len(gpus) // workers])


@contextlib.contextmanager
def stop_with_parent() -> Iterator[None]:
    """In a helper: send itself SIGTERM when the process that started it is gone."""
    parent = int(os.environ[HELPER])

    def stop_orphan() -> bool:
        orphaned = os.getppid() != parent
        if orphaned:
            os.kill(os.getpid(), signal.SIGTERM)
        return orphaned

    with repeat(stop_orphan, 1.0, "search parent"):
        yield
