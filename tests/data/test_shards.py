"""Shards have the images, classes and splits of the folder they are written from, and of other programs' tar files."""

from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.data.imagefolder import ImageFolder
from imgcls.data.module import ImageDataModule
from imgcls.data.sharding import writing
from imgcls.data.sharding.writing import write_shards
from imgcls.data.shards import Shards
from imgcls.data.stores.fingerprint import fingerprint
from imgcls.errors import UserError
from imgcls.system.shares import Share
from tests.conftest import write_pictures

OPTIONS = {"image_size": 16, "resize": 16, "batch_size": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = write_pictures(tmp_path / "pictures", {"train": 6, "val": 2, "test": 2})
    (root / "train" / "owl" / "000.png").write_bytes(b"damaged")
    return root


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 4000)


def content(data: ImageDataModule) -> dict[str, list[tuple[str, bytes]]]:
    """The class and the pixels of each image of each split, in an order of their own."""
    data.setup()
    found = {}
    for name, split in data.source.splits().items():
        pixels = data.store_of(name).gather(torch.arange(len(split)))
        labels = [data.class_names[label] for label in split.labels]
        found[name] = sorted(zip(labels, (image.numpy().tobytes() for image in pixels), strict=True))
    return found


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("store", ["none", "disk"])
def test_shards_have_the_images_of_the_folder(store: str, folder: Path, tmp_path: Path) -> None:
    original = ImageFolder(folder, **OPTIONS, store=store)
    expected = content(original)
    assert len(expected["train"]) == 17
    written = [
        file for rank in (1, 0) for file in write_shards(original.source, tmp_path / "shards", 2, Share(rank, 2))
    ]
    assert len(written) == len(set(written)) > 4
    data = Shards(tmp_path / "shards", **OPTIONS, store=store)
    assert data.class_names == original.class_names
    assert content(data) == expected
    (tmp_path / "shards" / "classnames.txt").unlink()
    bare = shutil.copytree(tmp_path / "shards", tmp_path / "bare", ignore=shutil.ignore_patterns("*.json"))
    unnamed = Shards(bare, **OPTIONS, store=store)
    assert unnamed.class_names == ("0", "1", "2")
    assert [pixels for _, pixels in content(unnamed)["train"]] == [pixels for _, pixels in expected["train"]]


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, part in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(part)
            tar.addfile(info, io.BytesIO(part))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (value, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_shards_of_other_programs(tmp_path: Path) -> None:
    """With names of classes, folders within the shard, other members, and no names of splits."""
    members: dict[str, bytes] = {}
    for number in range(20):
        members |= {
            f"in/{number:03}.json": b"{}",
            f"in/{number:03}.cls": b"dog" if number % 2 else b"cat",
            f"in/{number:03}.front.png": png(10 * number),
        }
    write_tar(tmp_path / "part-0.tar", members)
    data = Shards(tmp_path, **OPTIONS, store="none")
    data.setup()
    source = data.source
    assert source.class_names == ("cat", "dog")
    assert {name: len(split) for name, split in source.splits().items()} == {"train": 14, "val": 2, "test": 4}
    files = source.train.files
    assert [*files[3:9:2]] == [files[3], files[5], files[7]]
    for split in source.splits().values():
        for row, name in enumerate(split.names):
            number = int(Path(name).name[:3])
            assert split.labels[row] == number % 2
            assert split.open(row).getpixel((3, 3)) == (10 * number, 0, 0)
    before = fingerprint(source.train, tmp_path / "one")
    assert before == fingerprint(source.train, tmp_path / "another"), "of the contents"
    again = Shards(tmp_path, **OPTIONS, store="none")
    assert [tuple(map(np.ndarray.tolist, batch[1:3])) for batch in _batches(again)] == [
        tuple(map(np.ndarray.tolist, batch[1:3])) for batch in _batches(data)
    ]


def test_an_image_with_several_labels(tmp_path: Path) -> None:
    """Lists in .cls, as they are written, and in .json; with the names of the classes, and for streams as well."""
    source = ImageFolder(write_pictures(tmp_path / "pictures", {"train": 6, "test": 2}), **OPTIONS).find()
    labels = np.random.default_rng(0).integers(0, 2, (18, 3))
    labels[:3] = [0, 0, 0], [1, 1, 1], [1, 0, 1]
    several = replace(source, train=replace(source.train, labels=labels), test=None)
    write_shards(several, tmp_path / "written", 1)
    json, foreign = {"note": 1, "tags": ["owl", "cat"]}, {}
    for number in range(9):
        foreign |= {f"{number}.png": png(number), f"{number}.json": str(json).replace("'", '"').encode()}
    write_tar(tmp_path / "foreign" / "train.tar", foreign | {"9.png": png(9), "9.cls": b"[]"})
    for stream in (False, True):
        found = Shards(tmp_path / "written", **OPTIONS, stream=stream).find()
        assert found.class_names == source.class_names
        rows = [int(Path(name).name.split("_")[0]) for name in found.train.names]
        assert sorted(rows) == [*range(18)]
        assert np.array_equal(found.train.labels, labels[rows])
        other = Shards(tmp_path / "foreign", **OPTIONS, stream=stream).find()
        assert other.class_names == ("cat", "owl")
        assert other.train.labels.tolist() == [[1, 1]] * 9 + [[0, 0]]
    bare = shutil.copytree(tmp_path / "written", tmp_path / "bare", ignore=shutil.ignore_patterns("*.json"))
    assert np.array_equal(Shards(bare, **OPTIONS).find().train.labels, labels[rows])


def _batches(data: Shards) -> list[list[np.ndarray]]:
    data.setup()
    return [[part.numpy() for part in batch[:3]] for batch in data.train_dataloader()]


@pytest.mark.parametrize(
    ("name", "members", "message"),
    [
        ("train.tar", {"0.png": b"x", "1.png": b"x", "1.cls": b"0"}, "0.png has no class"),
        ("train.tar", {"0.png": b"x", "0.cls": b"0"}, "has 1 classes; at least 2"),
        ("val.tar", {"0.png": b"x", "0.cls": b"0", "1.png": b"x", "1.cls": b"1"}, "has no shards called train"),
        ("train.txt", {}, "has no shards: data=shards reads files such as train-00000.tar"),
    ],
)
def test_mistakes_are_one_clear_line(name: str, members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / name, members)
    with pytest.raises(UserError, match=message):
        Shards(tmp_path).find()


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", {f"{number}.png": png(number) * 20 for number in range(9)})
    whole = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is no complete, uncompressed tar file"):
        Shards(tmp_path).find()
