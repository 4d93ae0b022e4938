"""Different contents have different fingerprints, and no file is read twice."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from imgcls.data.sources import Split
from imgcls.data.stores import fingerprint as module
from imgcls.data.stores.fingerprint import END_BYTES, fingerprint


def write(folder: Path, contents: dict[str, bytes]) -> Split:
    """Files with equal times, as unpacked from an archive."""
    files = []
    for name, content in contents.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (0, 0))
        files.append(file)
    return Split(tuple(contents), np.zeros(len(files)), tuple(files))


def test_files_with_equal_names_sizes_and_times_can_differ(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"cat/1.bmp": b"meow", "dog/1.bmp": b"woof"})
    second = write(tmp_path / "b", {"cat/1.bmp": b"quack", "dog/1.bmp": b"woof"})
    third = write(tmp_path / "c", {"cat/1.bmp": b"moew", "dog/1.bmp": b"woof"})
    assert len({fingerprint(split, tmp_path / "cache") for split in (first, second, third)}) == 3


def test_swapped_folders_are_noticed(tmp_path: Path) -> None:
    contents = {"cat/1.bmp": b"meow", "dog/1.bmp": b"woof"}
    split = write(tmp_path / "a", contents)
    before = fingerprint(split, tmp_path / "cache")
    (tmp_path / "a" / "cat").rename(tmp_path / "a" / "t")
    (tmp_path / "a" / "dog").rename(tmp_path / "a" / "cat")
    (tmp_path / "a" / "t").rename(tmp_path / "a" / "dog")
    assert fingerprint(split, tmp_path / "cache") != before


def test_a_change_in_place_with_the_time_reset_is_noticed(tmp_path: Path) -> None:
    split = write(tmp_path / "a", {"1.bmp": b"meow"})
    before = fingerprint(split, tmp_path / "cache")
    split.files[0].write_bytes(b"woof")
    os.utime(split.files[0], (0, 0))
    assert fingerprint(split, tmp_path / "cache") != before


def test_moved_images_have_the_same_fingerprint(tmp_path: Path) -> None:
    split = write(tmp_path / "a", {"cat/1.bmp": b"meow"})
    before = fingerprint(split, tmp_path / "cache")
    (tmp_path / "a").rename(tmp_path / "b")
    moved = Split(split.names, split.labels, (tmp_path / "b" / "cat" / "1.bmp",))
    assert fingerprint(moved, tmp_path / "cache") == before


def test_large_files_differ_by_their_ends(tmp_path: Path) -> None:
    body = bytes(4 * END_BYTES)
    splits = [write(tmp_path / name, {"1.tif": body[:-1] + name.encode()}) for name in "ab"]
    assert len({fingerprint(split, tmp_path / "cache") for split in splits}) == 2


def test_the_second_call_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = write(tmp_path / "a", {"1.bmp": b"meow"})
    before = fingerprint(split, tmp_path / "cache")
    monkeypatch.setattr(module, "_contents", lambda *_: pytest.fail("files were read"))
    assert fingerprint(split, tmp_path / "cache") == before


def test_unreadable_files_and_an_unwritable_cache_are_no_error(tmp_path: Path) -> None:
    split = write(tmp_path / "a", {"1.bmp": b"meow"})
    split.files[0].unlink()
    (tmp_path / "file").write_text("")
    assert len(fingerprint(split, tmp_path / "file")) == 32
