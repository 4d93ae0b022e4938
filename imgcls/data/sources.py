"""What a data set is made of: names, labels and pictures of each split, before anything is decoded or normalised."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from imgcls.errors import UserError
from imgcls.pictures import open_picture

SPLITS = ("train", "val", "test")


class BadFile(NamedTuple):
    """A file that was left out, and why in one short phrase."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Split:
    """The pictures of one split, in a fixed order."""

    names: tuple[str, ...]
    """Unique and stable: the path relative to the data set's folder with forward slashes, or 'train/00012'."""
    labels: np.ndarray
    """int64 (N,), positions in the class names."""
    pictures: tuple[Path, ...] | np.ndarray
    """Files, or decoded pixels uint8 (N, H, W, 3)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))
        if not len(self.names) == len(self.labels) == len(self.pictures):
            raise ValueError(f"{len(self.names)} names, {len(self.labels)} labels, {len(self.pictures)} pictures")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the pictures; none where they are held as pixels."""
        return () if isinstance(self.pictures, np.ndarray) else self.pictures

    def open(self, index: int) -> Image.Image:
        """The picture at `index`, RGB and upright. Raises BadPicture."""
        return open_picture(self.pictures[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The pictures at `indices`, in that order."""
        at = np.asarray(indices, dtype=np.int64)
        if isinstance(self.pictures, np.ndarray):
            pictures: tuple[Path, ...] | np.ndarray = self.pictures[at]
        else:
            pictures = tuple(self.pictures[index] for index in at)
        return Split(tuple(self.names[index] for index in at), self.labels[at], pictures)

    def without(self, paths: Iterable[Path]) -> Split:
        """The split without the pictures whose files are in `paths`; itself where none is."""
        unwanted = set(paths)
        kept = [index for index, path in enumerate(self.files) if path not in unwanted]
        return self if not self.files or len(kept) == len(self) else self.subset(kept)

    @staticmethod
    def joined(splits: Sequence[Split]) -> Split:
        """The pictures of all `splits`, one after the other."""
        pictures: tuple[Path, ...] | np.ndarray
        if all(isinstance(split.pictures, np.ndarray) for split in splits):
            pictures = np.concatenate([split.pictures for split in splits])
        else:
            pictures = tuple(path for split in splits for path in split.files)
        names = tuple(name for split in splits for name in split.names)
        return Split(names, np.concatenate([split.labels for split in splits]), pictures)

    def class_counts(self, num_classes: int) -> np.ndarray:
        """int64 (num_classes,): pictures of each class."""
        return np.bincount(self.labels, minlength=num_classes)


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as it was found."""

    class_names: tuple[str, ...]
    """Readable, unique, in the order of the labels."""
    train: Split
    val: Split | None = None
    """None: to be split from train (`splits.with_validation`)."""
    test: Split | None = None
    bad: tuple[BadFile, ...] = ()
    """What `without` left out."""
    notes: tuple[str, ...] = ()
    """Short sentences on what a user may not expect, for the log."""

    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name, in the order of SPLITS."""
        found = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    def without(self, bad: Sequence[BadFile]) -> Source:
        """The data set without the `bad` files, which are added to its list.

        Raises UserError where a class has no training picture left.
        """
        if not bad:
            return self
        paths = {file.path for file in bad}
        train = self.train.without(paths)
        lost = np.setdiff1d(self.train.labels, train.labels)
        if len(lost):
            at = int(np.flatnonzero(self.train.labels == lost[0])[0])
            reason = next(file.reason for file in bad if file.path == self.train.files[at])
            raise UserError(
                f"No training picture of class '{self.class_names[lost[0]]}' can be used "
                f"(for example {self.train.files[at]}: {reason}). Replace the files or remove the class."
            )
        val, test = (split and split.without(paths) for split in (self.val, self.test))
        return replace(self, train=train, val=val, test=test, bad=(*self.bad, *bad))


def picture_name(relative: str) -> str:
    """A relative path as a stable name: forward slashes, composed accents, always encodable."""
    name = relative.replace(os.sep, "/")
    if name.isascii():
        return name
    name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", name)
