"""The processors, memory and disk that this process may use."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MAX_FLOOR_BYTES = 10_000_000_000
DISK_SHARE = 0.8  # of `spare_disk`: what one store, or the shards of one data set, take at most


def available_cores() -> int:
    """The number of processors that this process may use, within the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        match _limits(*files):
            case [quota, period] if quota > 0:  # -1: none
                cores = min(cores, max(1, quota // period))
    return cores


def local_processes(otherwise: int = 1) -> int:
    """The number of processes that torchrun has started on this machine; `otherwise` without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", otherwise))


def all_processes() -> int:
    """The number of processes that torchrun has started on all machines; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_cores() -> int:
    """The share of this process in the available processors, if torchrun has started several on this machine."""
    return max(1, available_cores() // local_processes())


def processor_name() -> str:
    """The name of the processor, as far as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def gpu_count() -> int:
    """The number of NVIDIA GPUs that this process may use, without importing torch, which takes seconds."""
    if not Path("/proc/driver/nvidia/version").exists():
        return 0
    count, visible = len(list(Path("/dev").glob("nvidia[0-9]*"))), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    named = itertools.takewhile(lambda name: name.strip() not in ("", "-1"), visible.split(","))
    return min(count, len(list(named)))


def threads_of_each(processes: int) -> str:
    """OMP_NUM_THREADS of each of several `processes` that share this one's processors; the user's value if set.

    More threads than processors would wait for each other in every small operation.
    """
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, available_cores() // processes))


def free_disk(folder: Path) -> int:
    """Bytes free on the disk where `folder` is or will be."""
    return shutil.disk_usage(nearest_existing(folder)).free


def spare_disk(folder: Path) -> int:
    """Bytes on the disk of `folder` that a cache may take: a twentieth of the disk, up to 10 GB, stays free."""
    usage = shutil.disk_usage(nearest_existing(folder))
    return max(0, usage.free - min(usage.total // 20, MAX_FLOOR_BYTES))


def free_inodes(folder: Path) -> int | None:
    """Number of files that can still be created on the disk of `folder`; None where nothing limits it or says so."""
    if not hasattr(os, "statvfs"):  # Windows
        return None
    status = os.statvfs(nearest_existing(folder))
    return status.f_favail if status.f_files else None


def nearest_existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def free_memory() -> int:
    """Bytes that can be allocated without swapping, within the limit of the container if there is one."""
    return max(0, min([_available(), *(limit - used for limit, used in _memory_limits())]))


def total_memory() -> int:
    """Bytes of the machine, or of the container if there is one. Needs psutil."""
    return min([int(import_module("psutil").virtual_memory().total), *(limit for limit, _ in _memory_limits())])


def _memory_limits() -> Iterator[tuple[int, int]]:
    """The bytes that the container may use, and those it uses."""
    for files in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        match _limits(*files):
            case [limit, used]:
                yield limit, used


def _limits(*files: str) -> list[int]:
    """The numbers in `files` of the container's control groups (version 2 or 1); empty where there is no limit."""
    try:
        return [int(number) for file in files for number in (CONTROL_GROUPS / file).read_text().split()]
    except (OSError, ValueError):  # not in a container, or 'max'
        return []


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
        return 4 << 30  # unknown: enough for small data sets only
