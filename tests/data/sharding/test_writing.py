"""A data set that is written as shards, more than once."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from imgcls.data.imagefolder import ImageFolder
from imgcls.data.sharding import writing
from imgcls.data.sharding.writing import write_shards
from imgcls.data.sources import Source
from imgcls.errors import UserError
from imgcls.images.paths import file_state
from tests.conftest import write_pictures


def test_a_killed_writing_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_pictures(tmp_path / "pictures", {"train": 6, "val": 2, "test": 2})
    source, add = ImageFolder(root).source, writing._add
    monkeypatch.setattr(writing, "SHARD_BYTES", 4000)
    calls: list[str] = []

    def dying(tar: tarfile.TarFile, name: str, content: bytes) -> None:
        calls.append(name)
        if len(calls) == 20:
            raise KeyboardInterrupt
        add(tar, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(writing, "_add", dying)
        with pytest.raises(KeyboardInterrupt):
            write_shards(source, tmp_path / "shards", 1)
    complete = {file: file_state(file) for file in (tmp_path / "shards").glob("*.tar")}
    assert complete
    written = write_shards(source, tmp_path / "shards", 1)
    assert {file: file_state(file) for file in complete} == complete
    assert sorted((tmp_path / "shards").glob("*.tar")) == sorted(written)
    with pytest.raises(UserError, match="is a shard of other images"):
        write_shards(Source(source.class_names, source.train.subset([0, 1])), tmp_path / "shards", 1)
