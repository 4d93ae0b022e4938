"""Fetched shards: which are kept, which are removed for others, and who waits for whom."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from imgcls.data.sharding import cache as module
from imgcls.data.sharding.cache import Reading, Shard, ShardCache
from imgcls.errors import UserError


class Slow:
    """An origin whose files are there when they are let go."""

    address = "slow"

    def __init__(self) -> None:
        self.gates: dict[str, threading.Event] = {}
        self.fetched: list[str] = []

    def fetch(self, name: str, target: Path, size: int | None = None) -> None:
        assert self.gates.setdefault(name, threading.Event()).wait(30)
        target.write_bytes(name.encode())
        self.fetched.append(name)

    def read(self, name: str, start: int, size: int) -> bytes:
        return f"far {name}".encode()


@pytest.fixture
def slow() -> Slow:
    slow = Slow()
    for name in "abcdef":
        slow.gates[name] = threading.Event()
        slow.gates[name].set()
    return slow


def cache_of(slow: Slow, folder: Path, limit: int) -> ShardCache:
    return ShardCache(slow, folder, {name: Shard(1) for name in "abcdef"}, limit)


def test_the_least_recently_used_shard_goes_first(slow: Slow, tmp_path: Path) -> None:
    cache = cache_of(slow, tmp_path, 3)
    with cache.reading(Counter("abcadaeaf")) as reading:
        for name in "abcadaeaf":
            assert reading.read(name, 0, 1) == name.encode()
            here = {file.name for file in tmp_path.glob("?")}
            assert len(here) <= 3
            assert "a" in here or name == "f", "which is still needed"
    assert sorted(slow.fetched) == list("abcdef")
    assert cache.read("b", 0, 1) == b"far b"


def test_a_shard_that_is_waited_for_needs_no_room(slow: Slow, tmp_path: Path) -> None:
    """Otherwise two processes could wait for each other: here one reader holds all the room."""
    cache, other = cache_of(slow, tmp_path, 2), cache_of(slow, tmp_path, 2)
    with cache.reading(Counter("aabb")) as first, other.reading(Counter("cd")) as second:
        assert first.read("a", 0, 1) + first.read("b", 0, 1) == b"ab"
        assert second.read("c", 0, 1) + second.read("d", 0, 1) == b"cd"
        assert first.read("a", 0, 1) + first.read("b", 0, 1) == b"ab"


def test_the_floor_of_free_space_is_kept(slow: Slow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "spare_disk", lambda folder: 2 - len([*tmp_path.glob("?")]))
    with cache_of(slow, tmp_path, 100).reading(Counter("abcdef")) as reading:
        for name in "abcdef":
            reading.read(name, 0, 1)
            assert len([*tmp_path.glob("?")]) <= 2


def test_a_shard_is_fetched_once_for_all(slow: Slow, tmp_path: Path) -> None:
    slow.gates["a"].clear()
    caches = [cache_of(slow, tmp_path, 6) for _ in range(2)]
    with caches[0].reading({"a": 1}) as first, caches[1].reading({"a": 1}) as second:
        slow.gates["a"].set()
        assert first.read("a", 0, 1) == second.read("a", 0, 1) == b"a"
    assert slow.fetched == ["a"]
    assert not [*tmp_path.glob(".a*")], "no lock is left"


def test_closing_does_not_wait_for_a_shard(slow: Slow, tmp_path: Path) -> None:
    slow.gates["b"].clear()
    with cache_of(slow, tmp_path, 6).reading(Counter("ab")) as reading:
        assert reading.read("a", 0, 1) == b"a"
    with pytest.raises(UserError, match="not read any more"):
        reading.read("b", 0, 1)
    slow.gates["b"].set()


def test_nothing_is_fetched_after_the_end(slow: Slow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the reading ends while room is made for the next shard."""
    cache = cache_of(slow, tmp_path, 6)
    monkeypatch.setattr(cache, "_make_room", lambda name: reading.stop() is None)
    reading = Reading(cache, "")
    reading._order = "ab"
    reading._fetch_all()
    assert not slow.fetched
    assert not [*tmp_path.glob(".a*")], "no lock is left"
