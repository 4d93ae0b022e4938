"""The index of a shard is read again until the shard changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcls.data.sharding import index
from imgcls.data.sharding.members import MembersIn
from imgcls.data.shards import Shards
from tests.data.test_shards import png, write_tar


def test_the_index_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members: dict[str, bytes] = {}
    for number in range(8):
        members |= {f"{number}.png": png(number), f"{number}.cls": b"%d" % (number % 2)}
    write_tar(tmp_path / "train.tar", members)
    first = Shards(tmp_path).find().train
    assert isinstance(first.files, MembersIn)
    assert first.files.names is first.names, "a list of millions of names is kept once"
    with monkeypatch.context() as patched:
        patched.setattr(index, "_scan", None)
        assert [*Shards(tmp_path).find().train.names] == [*first.names]
    write_tar(tmp_path / "train.tar", members | {"8.png": png(8), "8.cls": b"1"})
    assert len(Shards(tmp_path).find().train) == len(first) + 1 == 9
