"""How many processors there are for this process."""

from __future__ import annotations

import os
from pathlib import Path


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
