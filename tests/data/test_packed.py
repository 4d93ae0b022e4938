"""Archives of the user's images: unpacked once, and refused whole."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

import imgcls
from imgcls.data import packed
from imgcls.data.imagefolder import ImageFolder
from imgcls.errors import UserError


def pack(folder: Path, kind: str, *, inside: str = ".") -> Path:
    """An archive of `folder`, in which everything is in the folder `inside`."""
    staged = folder.parent / "staged"
    shutil.copytree(folder, staged / inside, dirs_exist_ok=True)
    (staged / "__MACOSX" / "train").mkdir(parents=True)
    (staged / "__MACOSX" / "train" / "._x.png").write_bytes(b"resource fork")
    return Path(shutil.make_archive(str(folder.parent / "packed"), kind, staged))


@pytest.mark.parametrize(("kind", "inside"), [("zip", "."), ("gztar", "my pictures"), ("tar", "a/b")])
def test_an_archive_is_a_folder_of_images(kind: str, inside: str, pictures: Path, own_cache: Path) -> None:
    archive = pack(pictures, kind, inside=inside)
    cfg = imgcls.compose([f"data={archive}"])
    assert cfg.data._target_.endswith("ImageFolder")
    data = ImageFolder(cfg.data.root, image_size=24)
    data.prepare_data()
    expected = ImageFolder(pictures, image_size=24)
    assert data.source.class_names == expected.source.class_names
    assert data.source.test.names == expected.source.test.names  # type: ignore[union-attr]

    found = sorted((own_cache / "unpacked").glob("[!.]*"))
    marker = found[0] / "marker"
    marker.touch()
    ImageFolder(archive).prepare_data()
    assert marker.exists()  # it was not unpacked again
    assert sorted((own_cache / "unpacked").glob("[!.]*")) == found
    archive.touch()
    ImageFolder(archive).prepare_data()
    assert len(list((own_cache / "unpacked").glob("[!.]*"))) == 2


def test_a_folder_of_training_images_alone_stays_a_split(pictures: Path) -> None:
    shutil.rmtree(pictures / "test")
    data = ImageFolder(pack(pictures, "zip"))
    data.prepare_data()
    assert list(data.source.splits()) == ["train", "val"]


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_the_floor_of_free_space_is_kept(
    kind: str, pictures: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only the content is too large."""
    (pictures / "train" / "notes.txt").write_bytes(bytes(1 << 20))
    archive = pack(pictures, kind)
    size = archive.stat().st_size
    assert size < 1 << 19
    for room in (size - 1, 1 << 20):
        monkeypatch.setattr(packed, "spare_disk", lambda folder, room=room: room)
        with pytest.raises(UserError, match=r"needs more than the .* that it may take in .*unpacked\. Set IMGCLS"):
            ImageFolder(archive).prepare_data()
        assert [*own_cache.rglob("*.*g")] == []
        assert [file.name for file in (own_cache / "unpacked").iterdir() if not file.name.endswith(".lock")] == []
    monkeypatch.setattr(packed, "spare_disk", lambda folder: 2 << 20)
    ImageFolder(archive).prepare_data()
    assert [*own_cache.rglob("*.*g")]


def test_a_bad_archive_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    damaged, outside, other = tmp_path / "a.zip", tmp_path / "b.zip", tmp_path / "c.txt"
    damaged.write_bytes(b"PK no archive")
    with zipfile.ZipFile(outside, "w") as zipped:
        zipped.writestr("../escaped.png", b"x")
    for archive in (damaged, outside):
        with pytest.raises(UserError, match=rf"{archive} cannot be unpacked: .* Or give the folder"):
            ImageFolder(archive).prepare_data()
    left = [path.name for path in (own_cache / "unpacked").iterdir() if not path.name.endswith(".lock")]
    assert left == []
    assert not list(own_cache.rglob("escaped.png"))
    other.write_text("x")
    with pytest.raises(UserError, match=r"is a file: give a folder, or \.zip.* table: \.csv.* spreadsheet"):
        imgcls.compose([f"data.root={other}"])
