"""What this process may use of its machine: processors, memory, disk."""

from __future__ import annotations

import logging
import os
import shutil
from importlib import import_module
from pathlib import Path

log = logging.getLogger(__name__)


def available_cores() -> int:
    """The processors that this process may use, also where a container has only a part of the machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or 'max'
        pass
    return cores


def threads_of_each(processes: int) -> str:
    """OMP_NUM_THREADS of each of several processes that share this one's processors; the user's own, where it is set.

    More threads than processors wait for each other in every small operation.
    """
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, available_cores() // processes))


def free_disk(folder: Path) -> int:
    """Bytes free on the disk where `folder` is or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def free_memory() -> int:
    """Bytes that can be taken without swapping, within the limit of the container this may run in."""
    free = _available()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue  # not in a container, or one without a limit ('max')
    return max(0, free)


def _available() -> int:
    try:
        return int(import_module("psutil").virtual_memory().available)
    except ImportError:
        pass
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30  # unknown: enough for small data sets, and no more
