"""Whether the worker of a trial is still alive."""

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
    """An id of this machine, or of the container on it, until it restarts: the scope of process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13])
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return ":".join(parts)


def me() -> dict[str, Any]:
    """What identifies this process among all others."""
    return {"host": _host(), "pid": os.getpid(), "born": born(os.getpid())}


def born(pid: int) -> float | None:
    """When process `pid` started, on a clock of this machine; None where there is no such process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else float(fields[19])  # ticks since boot, whatever the clock says
    import psutil

    try:
        return round(psutil.Process(pid).create_time(), 1)
    except psutil.Error:
        return None


def is_locked(folder: Path) -> bool:
    """Whether a process has locked this run folder to write to it."""
    try:
        with (folder / ".lock").open("r+") as lock:
            return not take_lock(lock, wait=False)
    except OSError:
        return False


class Watch:
    """Tells whether the worker of a trial is alive: on this machine by its process, on others by its heartbeat.

    Args:
        dead_after: seconds without a heartbeat after which a worker on another machine counts as dead.
    """

    def __init__(self, dead_after: float) -> None:
        self.dead_after = dead_after
        self._seen: dict[int, tuple[Any, float]] = {}

    def is_alive(self, worker: Mapping[str, Any] | None, number: int) -> bool:
        """Whether `worker`, the last to sign for trial `number`, is alive; None: nobody has signed for it."""
        if worker is not None and worker["host"] == me()["host"]:
            return is_here(worker)
        sign = worker and (worker["token"], worker["beat"])
        seen, since = self._seen.get(number, (None, 0.0))
        if number not in self._seen or seen != sign:
            self._seen[number] = sign, time.monotonic()
            return True
        return time.monotonic() - since < self.dead_after


def is_here(worker: Mapping[str, Any]) -> bool:
    """Whether `worker`, of this machine, is an active one of this process, or another process that is alive."""
    if worker["pid"] == os.getpid() and worker["born"] == born(os.getpid()):
        return worker["token"] in ACTIVE
    return born(worker["pid"]) == worker["born"]
