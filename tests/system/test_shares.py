"""Shares are all of the work, each item once, and are joined once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgcls.system.shares import Share, join_if_last


@pytest.mark.parametrize(("length", "count"), [(10, 3), (2, 5), (0, 2), (7, 1)])
def test_each_item_is_in_one_share(length: int, count: int) -> None:
    items = list(range(length))
    shares = [Share(rank, count).of(items) for rank in range(count)]
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, Share(0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Share(2, 4)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3"}, Share(1, 3)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, Share(0, 1)),  # of a batch script, which runs once
    ],
)
def test_the_share_is_that_of_torchrun_or_srun(
    environment: dict[str, str], share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Share.of_this_process() == share


def test_parts_are_joined_once_and_not_before_all_are_there(tmp_path: Path) -> None:
    parts, joined = Share(0, 4).parts(tmp_path / "out.csv", ["key"]), []
    assert len({*parts, *Share(0, 3).parts(tmp_path / "out.csv", ["key"])}) == 7
    barrier = threading.Barrier(4)

    def work(part: Path, join: Callable[[], object]) -> bool:
        part.write_text(part.name)
        barrier.wait()
        return join_if_last(parts, join)

    for part in parts[1:]:
        part.touch()
        assert not join_if_last(parts, lambda: joined.append("too early"))
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(work, parts, [lambda: joined.append([part.read_text() for part in parts])] * 4))
    assert joined == [[part.name for part in parts]]
    assert sorted(done) == [False, False, False, True]
    assert not list(tmp_path.iterdir())
