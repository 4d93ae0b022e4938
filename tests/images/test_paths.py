"""An image in a tar file has a path of its own, which no file has."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcls.images.paths import locate, member_path, read_member


def test_a_member_is_read_by_its_path(tmp_path: Path) -> None:
    shard = tmp_path / "old.tar" / "train-0.tar"
    shard.parent.mkdir()
    shard.write_bytes(b"..image..")
    path = member_path(str(shard), 2, 5, "n01440764/a b.jpg")
    assert Path(path).name == "a b.jpg", "so that its suffix is seen"
    assert locate(path) == (str(shard), 2, 7)
    assert read_member(path) == b"image"


@pytest.mark.parametrize(
    "path", ["cat/1.jpg", "images.tar/1-2.jpg", "images.tar/12/a.jpg", "a.tar", "a.tarot/1-2/a.jpg"]
)
def test_other_paths_are_those_of_files(path: str) -> None:
    assert locate(path) == (path, 0, None)
    assert read_member(path) is None
