"""Whether the worker of a trial is still there."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.system.files import take_lock

ACTIVE: set[str] = set()  # the tokens of the workers in this process


@functools.cache
def _host() -> str:
    """This machine, or the container on it, as long as it is up: where process numbers mean something."""
    words = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13], _namespace):
        with contextlib.suppress(OSError):
            words.append(read())
    return ":".join(words)


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def me() -> dict[str, Any]:
    """This process, so that it can be told from all others."""
    return {"host": _host(), "pid": os.getpid(), "born": born(os.getpid())}


def born(pid: int) -> float | None:
    """When process `pid` began, on a clock of this machine; None where there is no such process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else float(fields[19])  # ticks since boot, which no change of the clock moves
    import psutil

    try:
        return round(psutil.Process(pid).create_time(), 1)
    except psutil.Error:
        return None


def is_locked(folder: Path) -> bool:
    """Whether a process is writing to this run folder."""
    try:
        with (folder / ".lock").open("r+") as lock:
            return not take_lock(lock, wait=False)
    except OSError:
        return False


class Watch:
    """Tells whether the worker of a trial is alive: on this machine at once, on others by its signs of life.

    Args:
        dead_after: seconds without a sign after which a worker on another machine counts as dead.
    """

    def __init__(self, dead_after: float) -> None:
        self.dead_after = dead_after
        self._seen: dict[int, tuple[Any, float]] = {}

    def is_alive(self, worker: Mapping[str, Any] | None, number: int) -> bool:
        """Whether `worker`, which last said that it runs trial `number`, is alive; None: it has never said so."""
        if worker is not None and worker["host"] == me()["host"]:
            return is_here(worker)
        sign = worker and (worker["token"], worker["beat"])
        seen, since = self._seen.get(number, (None, 0.0))
        if number not in self._seen or seen != sign:
            self._seen[number] = sign, time.monotonic()
            return True
        return time.monotonic() - since < self.dead_after


def is_here(worker: Mapping[str, Any]) -> bool:
    """Whether `worker`, of this machine, is one of this process that works, or another process that lives."""
    if worker["pid"] == os.getpid() and worker["born"] == born(os.getpid()):
        return worker["token"] in ACTIVE
    return born(worker["pid"]) == worker["born"]
