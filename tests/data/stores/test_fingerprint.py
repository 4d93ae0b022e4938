"""Different contents have different fingerprints, and no file is read twice."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from imgcls.data.names import NamesInShards, PackedNames
from imgcls.data.sharding.members import MembersIn
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


def in_shards(folder: Path, shards: dict[str, list[bytes]]) -> Split:
    """The contents one after another in a file for each shard, as images `0`, `1`, … of it; with equal times."""
    folder.mkdir(parents=True)
    places, inside = list[tuple[int, int, int]](), list[str]()
    for number, (shard, contents) in enumerate(shards.items()):
        (folder / shard).write_bytes(b"".join(contents))
        os.utime(folder / shard, (0, 0))
        start = 0
        for place, content in enumerate(contents):
            places.append((number, start, len(content)))
            inside.append(str(place))
            start += len(content)
    held, folders = np.array(places), [name.removesuffix(".tar") for name in shards]
    packed = PackedNames(*PackedNames.pack(inside))
    names = NamesInShards(folders, held[:, 0], packed, np.arange(len(inside)))
    return Split(names, np.zeros(len(names)), MembersIn(folder, names, list(shards), held))


SHARDS = {"a.tar": [b"meow", b"purr" * END_BYTES], "b.tar": [b"woof"]}


def test_images_in_shards_have_the_fingerprint_of_files(tmp_path: Path) -> None:
    packed = in_shards(tmp_path / "shards", SHARDS)
    files = write(tmp_path / "files", {"a/0": b"meow", "a/1": b"purr" * END_BYTES, "b/0": b"woof"})
    assert fingerprint(packed, tmp_path / "cache") == fingerprint(files, tmp_path / "cache")
    (tmp_path / "shards" / "b.tar").unlink()
    files.files[2].unlink()
    assert fingerprint(packed, tmp_path / "cache") == fingerprint(files, tmp_path / "cache"), "with one missing"


def test_the_second_call_looks_at_each_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = in_shards(tmp_path / "shards", SHARDS)
    before = fingerprint(split, tmp_path / "cache")
    looked, state = list[str](), module.file_state
    monkeypatch.setattr(module, "_contents", lambda *_: pytest.fail("images were read"))
    monkeypatch.setattr(module, "file_state", lambda path: (looked.append(path.name), state(path))[1])
    assert fingerprint(split, tmp_path / "cache") == before
    assert looked == ["a.tar", "b.tar"]


def test_what_has_changed_in_a_shard_is_noticed(tmp_path: Path) -> None:
    """Its content, with the time reset; and where the images are in it, and their names, by another index."""
    split = in_shards(tmp_path / "shards", SHARDS)
    assert isinstance(split.pictures, MembersIn)
    found = {fingerprint(split, tmp_path / "cache")}
    shard = tmp_path / "shards" / "b.tar"
    shard.write_bytes(b"bark")
    os.utime(shard, (0, 0))
    found.add(fingerprint(split, tmp_path / "cache"))
    split.pictures.places[0, 2] -= 1
    found.add(fingerprint(split, tmp_path / "cache"))
    packed = PackedNames(*PackedNames.pack(["0", "1", "0"]))
    names = NamesInShards(["a", "c"], split.pictures.places[:, 0], packed, np.arange(3))
    found.add(fingerprint(Split(names, split.labels, split.pictures), tmp_path / "cache"))
    assert len(found) == 4
