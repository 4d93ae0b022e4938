"""`data=cifar10`: 60,000 images of ten classes, 32x32 px."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from imgcls.data.archives import Archive, ArchivedDataModule
from imgcls.data.imagefolder import find_tree, split_folders
from imgcls.data.sources import Source, Split
from imgcls.data.unpickling import UnsafePickle, read_arrays
from imgcls.errors import UserError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
SIDE_PX = 32
PLANES = 3 * SIDE_PX**2  # values of an image: its red, green and blue planes

Read = Callable[[Path, str], tuple[np.ndarray, np.ndarray]]


class Cifar10(ArchivedDataModule):
    """CIFAR-10 (Krizhevsky 2009): the original batches, or a tree `train/<class>`, `test/<class>`."""

    title = "CIFAR-10"
    layout = "the original batches, or train/<class> and test/<class>"
    default_archive = Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"
    )

    def find(self) -> Source:
        """Training and test images; validation is split off by `val_fraction`."""
        return find_cifar10(self.locate([BINARY, PYTHON, "cifar10"], holds_cifar10))


def find_cifar10(folder: Path) -> Source:
    """The images in `folder`, in any of the three layouts. Raises UserError."""
    if reader := _reader(folder):
        train, test = (_from_batches(folder, split, reader) for split in ("train", "test"))
        return Source(NAMES, train, None, test)
    return find_tree(folder, split_folders(folder), ("train", "test"), Cifar10.layout)


def holds_cifar10(folder: Path) -> bool:
    """Whether `folder` contains original batches or a tree of class folders."""
    return _reader(folder) is not None or "train" in split_folders(folder)


def _reader(folder: Path) -> Read | None:
    """The function that reads the batches in `folder`; None if there are none."""
    for suffix, read in ((".bin", _read_binary), ("", _read_python)):
        if any((folder / f"{batch}{suffix}").is_file() for batches in BATCHES.values() for batch in batches):
            return read
    return None


def _from_batches(folder: Path, split: str, read: Read) -> Split:
    labels, planes = zip(*(read(folder, batch) for batch in BATCHES[split]), strict=True)
    pictures = np.concatenate(planes).reshape(-1, 3, SIDE_PX, SIDE_PX).transpose(0, 2, 3, 1)
    names = tuple(f"{split}/{number:05}" for number in range(len(pictures)))
    return Split(names, np.concatenate(labels), np.ascontiguousarray(pictures))


def _read_binary(folder: Path, batch: str) -> tuple[np.ndarray, np.ndarray]:
    file = folder / f"{batch}.bin"
    content = np.frombuffer(_read_bytes(file), dtype=np.uint8)
    if len(content) % (1 + PLANES):
        raise _damaged(file, f"its {len(content):,} bytes are not a whole number of images")
    records = content.reshape(-1, 1 + PLANES)
    return _check(file, records[:, 0], records[:, 1:])


def _read_python(folder: Path, batch: str) -> tuple[np.ndarray, np.ndarray]:
    file = folder / batch
    try:
        content = read_arrays(_read_bytes(file))
        return _check(file, np.asarray(content[b"labels"]), np.asarray(content[b"data"]))
    except (UnsafePickle, KeyError, TypeError, ValueError) as error:
        raise _damaged(file, str(error)) from error


def _check(file: Path, labels: np.ndarray, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(labels, int64 (N,); planes, uint8 (N, 3072)), or a UserError."""
    if planes.dtype != np.uint8 or planes.shape != (*labels.shape, PLANES) or not len(labels):
        raise _damaged(file, f"it has {len(labels)} labels and {planes.dtype} {planes.shape} pixels")
    if not (np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0 and labels.max() < len(NAMES)):
        raise _damaged(file, "its labels are not 0 to 9")
    return labels.astype(np.int64), planes


def _read_bytes(file: Path) -> bytes:
    if not file.is_file():
        raise UserError(f"{file} is missing: CIFAR-10 has five training batches and one test batch.")
    return file.read_bytes()


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"{file} is not a readable batch of CIFAR-10 ({why}). Download the archive again.")
