"""What is built once: under a lock, whole or not at all, and found by everyone else."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import pytest

from imgcls.system import cache
from imgcls.system.cache import cache_folder, find_or_build, hold
from imgcls.system.files import take_lock

FILE = "number.txt"


def read(folder: Path) -> int | None:
    try:
        return int((folder / FILE).read_text())
    except (OSError, ValueError):
        return None


def test_it_is_built_once_and_then_found(tmp_path: Path) -> None:
    folder, built = tmp_path / "one", []

    def build(partial: Path) -> None:
        built.append(list(partial.iterdir()))
        (partial / FILE).write_text(str(len(built)))

    for _ in range(2):
        assert find_or_build(folder, lambda: read(folder), build) == 1
    assert built == [[]]  # once, in an empty folder
    (folder / FILE).write_text("not whole")
    assert find_or_build(folder, lambda: read(folder), build) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".one.lock", "one"]


def test_those_who_come_while_it_is_built_wait_for_it(tmp_path: Path) -> None:
    folder, entered, looked = tmp_path / "one", threading.Event(), []

    def build(partial: Path) -> None:
        entered.set()
        assert not looked  # the other thread has not got past the lock
        (partial / FILE).write_text("7")

    def look() -> None:
        entered.wait()
        looked.append(find_or_build(folder, lambda: read(folder), lambda partial: pytest.fail("built twice")))

    waiting = threading.Thread(target=look)
    waiting.start()
    assert find_or_build(folder, lambda: read(folder), build) == 7
    waiting.join()
    assert looked == [7]


def test_a_build_that_fails_leaves_nothing_and_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / FILE).write_text("not whole")

    def build(partial: Path) -> None:
        (partial / FILE).write_text("1")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        find_or_build(folder, lambda: read(folder), build)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".one.lock", "one"]
    assert (folder / FILE).read_text() == "not whole"


def test_what_cannot_be_read_back_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be read back"):
        find_or_build(tmp_path / "one", lambda: None, lambda partial: None)


def test_what_is_being_removed_cannot_be_held(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.touch()
    with file.open("rb") as removing:
        assert take_lock(removing, wait=False)
        with pytest.raises(OSError, match="Removed from the cache"):
            hold(file)
    hold(file).close()


def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("IMGCLS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert cache_folder().parent == Path(tempfile.gettempdir())


def test_a_cache_that_is_removed_with_its_container_has_no_identity(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, mounts = cache.cache_identity(), tmp_path / "mounts"
    assert mine == cache.cache_identity() is not None
    monkeypatch.setattr(cache, "MOUNTS", mounts)
    for kind, lost in (("ext4", False), ("overlay", True)):
        mounts.write_text(f"rootfs / rootfs rw 0 0\n{kind} / {kind} rw 0 0\nproc /proc proc rw 0 0\n")
        assert cache._goes_with_container(Path("/")) is lost
        assert not cache._goes_with_container(Path("/proc/self/mounts")), "mounted from elsewhere"
    monkeypatch.setattr(cache, "_goes_with_container", lambda file: True)
    assert cache.cache_identity() is None


def test_a_cache_that_cannot_be_written_has_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "file"))
    assert cache.cache_identity() is None
