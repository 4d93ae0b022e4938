"""`data=cifar10`: 60,000 pictures of ten classes, 32x32 px."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imgcls.data.archives import Archive, ArchivedDataModule
from imgcls.data.folders import find_splits
from imgcls.data.imagefolder import split_folders
from imgcls.data.sources import Source, Split
from imgcls.errors import UserError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
RECORD = 1 + 3 * 32 * 32  # one label, then the red, green and blue planes


class Cifar10(ArchivedDataModule):
    """CIFAR-10 (Krizhevsky 2009): the original batches, or a tree `train/<class>`, `test/<class>`."""

    title = "The pictures of CIFAR-10"
    layout = "the original batches, or train/<class> and test/<class>"
    default_archive = Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", 170052171, "c32a1d4ab5d03f1284b67883e8d87530"
    )

    def find(self) -> Source:
        """Training and test pictures; validation is split off by `val_fraction`."""
        return find_cifar10(self.located([BINARY, PYTHON, "cifar10"], holds=_holds))


def find_cifar10(folder: Path) -> Source:
    """The pictures in `folder`, in whichever of the three layouts."""
    if (folder / "test_batch.bin").is_file() or (folder / "test_batch").is_file():
        read = _read_binary if (folder / "test_batch.bin").is_file() else _read_python
        splits = {name: _from_batches(folder, name, batches, read) for name, batches in BATCHES.items()}
        return Source(NAMES, splits["train"], None, splits["test"])
    places = split_folders(folder)
    if "test" not in places:
        raise UserError(f"{folder} has no folder 'test'. Expected train/<class> and test/<class>.")
    names, splits = find_splits(folder, places)
    return Source(names, splits["train"], splits.get("val"), splits["test"])


def _holds(folder: Path) -> bool:
    batches = (folder / "test_batch.bin").is_file() or (folder / "test_batch").is_file()
    return batches or "train" in split_folders(folder)


def _from_batches(folder: Path, name: str, batches: list[str], read: object) -> Split:
    parts = [read(folder, batch) for batch in batches]  # type: ignore[operator]
    labels = np.concatenate([labels for labels, _ in parts])
    pictures = np.concatenate([pictures for _, pictures in parts])
    return Split(tuple(f"{name}/{number:05}" for number in range(len(labels))), labels, pictures)


def _read_binary(folder: Path, batch: str) -> tuple[np.ndarray, np.ndarray]:
    file = folder / f"{batch}.bin"
    content = np.frombuffer(_bytes_of(file), dtype=np.uint8)
    if len(content) == 0 or len(content) % RECORD:
        raise UserError(f"{file} is damaged: {len(content)} bytes are no whole number of pictures. Download it again.")
    records = content.reshape(-1, RECORD)
    return records[:, 0].astype(np.int64), _channels_last(records[:, 1:])


def _read_python(folder: Path, batch: str) -> tuple[np.ndarray, np.ndarray]:
    from imgcls.data.unpickling import UnsafePickle, read_arrays

    file = folder / batch
    try:
        content = read_arrays(_bytes_of(file))
        labels, pixels = content[b"labels"], content[b"data"]
    except (UnsafePickle, KeyError, ValueError, EOFError, TypeError) as error:
        raise UserError(f"{file} is no batch of CIFAR-10 that can be read: {error}") from error
    return np.asarray(labels, dtype=np.int64), _channels_last(np.asarray(pixels, dtype=np.uint8))


def _channels_last(planes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _bytes_of(file: Path) -> bytes:
    if not file.is_file():
        raise UserError(f"{file} is missing: CIFAR-10 has five training batches and one test batch.")
    return file.read_bytes()
