"""The names of large splits are mapped from files, and are the same as before."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from imgcls.data import lists, names
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.lists import MappedNames, map_names
from imgcls.data.sources import FilesIn, Source, Split
from imgcls.system.cache import entries, remove
from tests.conftest import write_pictures

NAMES = ("a/1.png", "", "b/café 2.png", os.fsdecode(b"c/\xff.png"), "d/4.png")


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MANY", 4)
    monkeypatch.setattr(names, "AT_A_TIME", 2)


def source(names: tuple[str, ...] = NAMES, paths: tuple[str, ...] = NAMES) -> Source:
    labels = np.arange(len(names)) % 2
    return Source(("x", "y"), Split(names, labels, FilesIn("root", paths)))


def test_they_are_the_same(tmp_path: Path) -> None:
    mapped = map_names(source(), tmp_path).train
    assert isinstance(mapped.names, MappedNames)
    assert len(mapped.names) == len(mapped.files) == 5
    assert tuple(mapped.names) == NAMES
    assert [mapped.names[place] for place in range(-5, 5)] == [*NAMES, *NAMES]
    assert mapped.names[1:4] == NAMES[1:4]
    assert mapped.names[::-2] == NAMES[::-2]
    with pytest.raises(IndexError):
        mapped.names[5]
    assert list(mapped.files) == list(source().train.files)
    assert isinstance(mapped.pictures, FilesIn)
    assert mapped.pictures.names is mapped.names, "kept once"
    assert mapped.subset([3, 0]).names == (NAMES[3], NAMES[0])
    assert list(mapped.subset([3, 0]).files) == list(source().train.subset([3, 0]).files)
    paths = tuple(name.upper() for name in NAMES)
    assert list(map_names(source(NAMES, paths), tmp_path).train.files) == list(source(NAMES, paths).train.files)


def test_files_are_written_once_and_again_where_they_are_incomplete(tmp_path: Path) -> None:
    first = map_names(source(), tmp_path)
    [entry] = entries(tmp_path)
    assert entry.kind == "lists"
    assert not remove(entry), "while they are used"
    before = (entry.path / "text.npy").stat().st_ino
    assert tuple(map_names(source(), tmp_path).train.names) == NAMES
    assert (entry.path / "text.npy").stat().st_ino == before
    del first
    np.save(entry.path / "text.npy", np.zeros(3, dtype=np.uint8))
    assert tuple(map_names(source(), tmp_path).train.names) == NAMES
    (tmp_path / "file").touch()
    assert map_names(source(), tmp_path / "file").train.names == NAMES, "without a cache"


def test_a_data_set_has_them_also_without_its_bad_images(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", {"train": 8, "test": 1})
    (root / "train" / "cat" / "000.png").write_bytes(b"damaged")
    data = ImageFolder(root, image_size=16, resize=16, store="memory")
    assert isinstance(data.source.train.names, MappedNames)
    data.setup()
    assert isinstance(data.source.train.names, MappedNames)
    assert isinstance(data.source.test.names if data.source.test is not None else (), tuple), "these are few"
    assert [file.path.name for file in data.source.bad] == ["000.png"]
    assert "train/cat/000.png" not in [*data.source.train.names]
    for name, path in zip(data.source.train.names, data.source.train.files, strict=True):
        assert path == root / name
