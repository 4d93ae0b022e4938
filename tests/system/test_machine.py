"""What a container may use is what its control groups allow, of either version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgcls.system import machine

GB = 1 << 30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the control groups, of a machine of 16 processors with 64 GB free."""
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(machine, "_available", lambda: 64 * GB)
    return tmp_path


def write(groups: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (groups / name).parent.mkdir(exist_ok=True)
        (groups / name).write_text(f"{content}\n")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000"}, 16),
        ({"cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "3200000 100000"}, 16),
        ({"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000}, 16),
        ({"cpu/cpu.cfs_quota_us": 400000, "cpu/cpu.cfs_period_us": 100000}, 4),
    ],
)
def test_processors(groups: Path, files: dict[str, object], cores: int) -> None:
    write(groups, files)
    assert machine.available_cores() == cores


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 64 * GB),
        ({"memory.max": "max", "memory.current": GB}, 64 * GB),
        ({"memory.max": 8 * GB, "memory.current": 3 * GB}, 5 * GB),
        ({"memory.max": GB, "memory.current": 2 * GB}, 0),
        ({"memory/memory.limit_in_bytes": 2**63 - 4096, "memory/memory.usage_in_bytes": GB}, 64 * GB),
        ({"memory/memory.limit_in_bytes": 8 * GB, "memory/memory.usage_in_bytes": GB}, 7 * GB),
    ],
)
def test_memory(groups: Path, files: dict[str, object], free: int) -> None:
    write(groups, files)
    assert machine.free_memory() == free


def test_the_memory_of_a_container_is_its_limit(groups: Path) -> None:
    whole = machine.total_memory()
    write(groups, {"memory.max": 2**63 - 4096, "memory.current": 2048})
    assert machine.total_memory() == whole
    write(groups, {"memory.max": 4096})
    assert machine.total_memory() == 4096


def test_processes_share_the_processors(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write(groups, {"cpu.max": "600000 100000"})
    assert [machine.threads_of_each(count) for count in (1, 4, 8)] == ["6", "1", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert machine.threads_of_each(2) == "5"


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0, 1,2", 2), ("0,-1,1", 1)])
def test_gpus(visible: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "version"):
        (tmp_path / name).touch()
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / Path(path).name if "version" in path else tmp_path)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpu_count() == count
    (tmp_path / "version").unlink()
    assert machine.gpu_count() == 0
