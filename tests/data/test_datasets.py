"""Each data set, from its files to batches, with tiny generated images."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.data import archives
from imgcls.data.caltech256 import Caltech256
from imgcls.data.cifar10 import BATCHES, BINARY, NAMES, PYTHON, Cifar10, find_cifar10
from imgcls.data.digits import Digits
from imgcls.data.dogbreeds import DogBreeds
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.module import ImageDataModule
from imgcls.data.unpickling import UnsafePickle, read_arrays
from imgcls.errors import UserError
from tests.conftest import write_pictures


def count_images(data: ImageDataModule) -> dict[str, int]:
    """Prepare, set up, and count the images of an epoch of each loader."""
    data.prepare_data()
    data.setup()
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    counts = {}
    for name, loader in loaders.items():
        batches = list(loader)
        assert all(batch.images.shape[1:] == (3, data.image_size, data.image_size) for batch in batches)
        assert all(batch.labels.min() >= 0 and batch.labels.max() < data.num_classes for batch in batches)
        counts[name] = sum(len(batch.labels) for batch in batches)
    return counts


def cifar_batches(count: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        batch: (np.arange(count) % 10, rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
        for batches in BATCHES.values()
        for batch in batches
    }


def write_binary(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for batch, (labels, planes) in cifar_batches().items():
        records = np.concatenate([labels.astype(np.uint8)[:, None], planes.reshape(len(labels), -1)], axis=1)
        (folder / f"{batch}.bin").write_bytes(records.tobytes())
    return folder


def write_python(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for batch, (labels, planes) in cifar_batches().items():
        content = {b"labels": labels.tolist(), b"data": planes.reshape(len(labels), -1), b"filenames": [b"x.png"]}
        (folder / batch).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def test_digits() -> None:
    data = Digits(image_size=8, resize=8)
    assert count_images(data) == {
        "train": 1216,
        "val": 180,
        "test": 359,
    }  # whole batches of 64 from 1,258
    assert data.class_names[3] == "three"
    pixels = data.source.train.pictures
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape[1:] == (8, 8, 3)
    assert (pixels.min(), pixels.max()) == (0, 255)
    names = [set(split.names) for split in data.source.splits().values()]
    assert len(set.union(*names)) == 1797
    assert set(Digits(seed=1).source.test.names) != names[2]  # type: ignore[union-attr]
    assert np.ptp(data.source.train.class_counts(10)) <= 10


@pytest.mark.parametrize("write", [write_binary, write_python])
@pytest.mark.parametrize("root", ["folder", "parent"])
def test_cifar10_batches(write: Any, root: str, tmp_path: Path) -> None:
    folder = write(tmp_path / (BINARY if write is write_binary else PYTHON))
    data = Cifar10(folder if root == "folder" else tmp_path, image_size=32, resize=32, batch_size=10)
    assert count_images(data) == {"train": 90, "val": 10, "test": 20}
    assert data.class_names == NAMES
    test = data.source.test
    assert test is not None
    assert isinstance(test.pictures, np.ndarray)
    labels, planes = cifar_batches()["test_batch"]
    assert np.array_equal(test.pictures[3, :, :, 1], planes[3, 1]), "green of the fourth image"
    assert np.array_equal(test.labels, labels)
    assert test.names[3] == "test/00003"


def test_cifar10_tree(tmp_path: Path) -> None:
    write_pictures(tmp_path / "cifar10", {"train": 20, "test": 5}, side=32)
    for root in (tmp_path, tmp_path / "cifar10"):
        assert count_images(Cifar10(root, image_size=32, resize=32, batch_size=6)) == {
            "train": 54,
            "val": 6,
            "test": 15,
        }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "data_batch_3.bin").unlink(), "data_batch_3.bin is missing"),
        (lambda folder: (folder / "test_batch.bin").write_bytes(b"x" * 5000), "5,000 bytes are not a whole number"),
        (lambda folder: (folder / "test_batch.bin").write_bytes(b""), "0 labels"),
        (lambda folder: (folder / "test_batch.bin").write_bytes(b"\x0b" * 3073), "labels are not 0 to 9"),
    ],
)
def test_cifar10_damaged(damage: Any, message: str, tmp_path: Path) -> None:
    damage(folder := write_binary(tmp_path / BINARY))
    with pytest.raises(UserError, match=message):
        find_cifar10(folder)


def test_pickles_execute_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    folder = write_python(tmp_path / PYTHON)
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"labels": Evil(), b"data": 1}))
    with pytest.raises(UserError, match=r"asks for .*, which is not an array"):
        find_cifar10(folder)
    assert not (tmp_path / "ran").exists()
    for damaged in (b"", b"\x80", pickle.dumps(np.arange(9))[:-20], b"garbage", pickle.dumps([1])[:-1]):
        with pytest.raises(UnsafePickle):
            read_arrays(damaged)
    for protocol in range(5):
        assert read_arrays(pickle.dumps({b"a": np.arange(3)}, protocol))[b"a"].tolist() == [0, 1, 2]


def test_a_wrong_folder_is_refused_with_the_expected_layout(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    for data, expected in [
        (Cifar10(tmp_path), "CIFAR-10. Expected the original batches, or train/<class> and test/<class>."),
        (DogBreeds(tmp_path), "Udacity's dog-breed archive. Expected dogImages/{train,valid,test}/NNN.Breed_name."),
        (Caltech256(tmp_path), "Caltech-256. Expected 256_ObjectCategories/NNN.name."),
    ]:
        with pytest.raises(UserError) as error:
            data.source  # noqa: B018
        assert str(error.value) == f"data.root={tmp_path} does not look like {expected}"
    with pytest.raises(UserError, match="no such folder"):
        Cifar10(tmp_path / "none").source  # noqa: B018
    with pytest.raises(UserError, match=r"is not in .*\. Download it with prepare_data\(\)"):
        Cifar10().source  # noqa: B018


def test_dogbreeds(tmp_path: Path) -> None:
    breeds = ("001.Affenpinscher", "002.Afghan_hound", "003.Airedale_terrier")
    write_pictures(tmp_path / "dogImages", {"train": 8, "valid": 3, "test": 2}, breeds)
    broken = tmp_path / "dogImages" / "train" / breeds[0] / "000.png"
    broken.write_bytes(broken.read_bytes()[:-150])
    for root in (tmp_path, tmp_path / "dogImages"):
        data = DogBreeds(root, image_size=16, resize=16, batch_size=23)
        assert count_images(data) == {"train": 23, "val": 9, "test": 6}
        assert data.class_names == ("Affenpinscher", "Afghan hound", "Airedale terrier")
        assert [(file.path, file.reason.split()[0]) for file in data.source.bad] == [(broken, "truncated")]
        with pytest.raises(UserError, match=r"000.png.*truncated"):
            DogBreeds(root, image_size=16, resize=16, on_bad="error").setup()


def test_caltech256(tmp_path: Path) -> None:
    names = ("003.backpack", "127.laptop-101", "257.clutter")
    write_pictures(tmp_path, {"256_ObjectCategories": 40}, names)
    folder = tmp_path / "256_ObjectCategories"
    (folder / "003.backpack" / "RENAME2").touch()
    data = Caltech256(tmp_path, image_size=16, resize=16, batch_size=8)
    assert count_images(data) == {"train": 56, "val": 8, "test": 16}
    assert data.class_names == ("backpack", "laptop")
    assert Caltech256(folder, clutter=True).class_names == ("backpack", "laptop", "clutter")


def test_imagefolder(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"Training": 8, "valid": 2, "test": 2})
    data = ImageFolder(tmp_path, image_size=16, resize=16, batch_size=8)
    assert count_images(data) == {"train": 24, "val": 6, "test": 6}
    with pytest.raises(UserError, match="needs data"):
        ImageFolder().source  # noqa: B018
    with pytest.raises(UserError, match="test_fraction"):
        ImageFolder(tmp_path, test_fraction=1.0)


def test_the_archive_is_downloaded_once(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "dogImages", {"train": 8, "valid": 3, "test": 2})
    packed, calls = io.BytesIO(), []
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(tmp_path / "dogImages", "dogImages")

    def download(url: str, target: Path, **expected: object) -> None:
        calls.append((url, expected))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(packed.getvalue())

    monkeypatch.setattr(archives, "download", download)
    for _ in range(2):
        data = DogBreeds(url="http://127.0.0.1/dogs.tar", image_size=16, resize=16, batch_size=8)
        assert count_images(data) == {"train": 24, "val": 9, "test": 6}
    assert calls == [("http://127.0.0.1/dogs.tar", {"size": None, "md5": None})]
    assert [path.name for path in (own_cache / "data").iterdir() if path.name[0] != "."] == ["dogbreeds"]
    Cifar10(tmp_path).prepare_data()
    assert len(calls) == 1, "nothing is downloaded to data.root"
