"""The content of a data set: names, labels and images of each split, before decoding and normalisation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from PIL import Image

from imgcls.data.names import names_at
from imgcls.errors import UserError, nearest
from imgcls.images.channels import RGB, Depth, Planes, open_planes
from imgcls.images.decoding import open_picture, open_scaled

SPLITS = ("train", "val", "test")


class FilesIn(Sequence[Path]):
    """Files by their paths from a folder. The Path objects of a million files would take seconds and half a gigabyte,
    so each is created when it is used.

    Args:
        folder: absolute, or relative to the working directory.
        names: paths from `folder`, or absolute ones.
    """

    on_disk = True
    """Whether the paths are those of files; if not, each image is fetched when it is taken from the sequence."""

    def __init__(self, folder: str | Path, names: Sequence[str]) -> None:
        self.folder, self.names = str(folder), names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> FilesIn: ...
    def __getitem__(self, index: int | slice) -> Path | FilesIn:
        if isinstance(index, slice):
            return self.at(range(*index.indices(len(self))))
        return self._path(index)

    def _path(self, index: int) -> Path:
        return Path(os.path.join(self.folder, self.names[index]))  # noqa: PTH118 - quicker than joining two Paths

    def at(self, indices: Iterable[int]) -> FilesIn:
        """The files at `indices`, in that order."""
        return FilesIn(self.folder, names_at(self.names, list(indices)))

    def joined(self, others: Sequence[FilesIn]) -> Sequence[Path]:
        """These and those of `others`."""
        return tuple(path for files in (self, *others) for path in files)

    def digest(self) -> bytes | None:
        """What identifies the names and the contents, 16 bytes, where that is known without reading them."""
        return None


class BadFile(NamedTuple):
    """A file that was skipped, and why, in one short phrase."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split, in a fixed order."""

    names: Sequence[str]
    """Unique and stable: the path relative to the data set's folder with forward slashes, or 'train/00012'."""
    labels: np.ndarray
    """int64 (N,), positions in the class names; or uint8 (N, C), 1 for each of an image's labels."""
    pictures: Sequence[Path] | np.ndarray
    """Files, or decoded pixels uint8 (N, H, W, 3)."""
    groups: tuple[str, ...] | None = None
    """The group of each image, such as its patient, if groups must stay in one split."""
    weights: np.ndarray | None = None
    """float32 (N,), the weights of the images in the training loss, if they differ."""

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        object.__setattr__(self, "labels", labels.astype(np.uint8 if labels.ndim == 2 else np.int64, copy=False))
        if not len(self.names) == len(self.labels) == len(self.pictures):
            raise ValueError(f"{len(self.names)} names, {len(self.labels)} labels, {len(self.pictures)} images")
        if any(len(column) != len(self.names) for column in (self.groups, self.weights) if column is not None):
            raise ValueError(f"groups and weights must be as many as the {len(self.names)} names")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def files(self) -> Sequence[Path]:
        """The files of the images; empty if they are in memory, or not on this machine."""
        pictures = self.pictures
        return () if isinstance(pictures, np.ndarray) or not getattr(pictures, "on_disk", True) else pictures

    def open(self, index: int) -> Image.Image:
        """Decode the image at `index`, RGB and upright. Raises BadPicture."""
        return open_picture(self.pictures[index])

    def open_planes(self, index: int, depth: Depth) -> Planes:
        """Decode the image at `index` with other channels or bits. Raises BadPicture."""
        return open_planes(self.pictures[index], depth)

    def preview(self, index: int, depth: Depth = RGB) -> Image.Image:
        """The image at `index` for people, RGB. Raises BadPicture."""
        return self.open(index) if depth == RGB else self.open_planes(index, depth).preview()

    def open_scaled(self, index: int, side: int) -> tuple[np.ndarray, float]:
        """The pixels of the image at `index` for a square of `side` px, and its width / height.

        See `pictures.open_scaled`.
        """
        return open_scaled(self.pictures[index], side)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The images at `indices`, in that order."""
        at = np.asarray(indices, dtype=np.int64)
        places = at.tolist()
        names = names_at(self.names, places)
        pictures: Sequence[Path] | np.ndarray
        if isinstance(self.pictures, np.ndarray):
            pictures = self.pictures[at]
        elif isinstance(self.pictures, FilesIn):
            pictures = self.pictures.at(places)
            if self.pictures.names is self.names:
                pictures.names = names
        else:
            pictures = tuple(self.pictures[index] for index in places)
        return Split(
            names,
            self.labels[at],
            pictures,
            groups=tuple(map(self.groups.__getitem__, places)) if self.groups is not None else None,
            weights=self.weights[at] if self.weights is not None else None,
        )

    def without(self, paths: Iterable[Path]) -> Split:
        """The split without the images whose files are in `paths`; itself if there are none."""
        excluded = set(paths)
        kept = [index for index, path in enumerate(self.files) if path not in excluded]
        return self if not self.files or len(kept) == len(self) else self.subset(kept)

    @staticmethod
    def joined(splits: Sequence[Split]) -> Split:
        """The images of all `splits`, concatenated."""
        pictures: Sequence[Path] | np.ndarray
        if all(isinstance(split.pictures, np.ndarray) for split in splits):
            pictures = np.concatenate([split.pictures for split in splits])
        elif len(lists := [split.pictures for split in splits if isinstance(split.pictures, FilesIn)]) == len(splits):
            pictures = lists[0].joined(lists[1:])
        else:
            pictures = tuple(path for split in splits for path in split.files)
        names = tuple(name for split in splits for name in split.names)
        groups = [split.groups for split in splits]
        weights = [split.weights for split in splits]
        return Split(
            names,
            np.concatenate([split.labels for split in splits]),
            pictures,
            groups=None if None in groups else tuple(group for part in groups for group in part or ()),
            weights=None if any(part is None for part in weights) else np.concatenate(weights),  # type: ignore[arg-type]
        )

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Number of images of each class, int64 (num_classes,)."""
        if self.multilabel:
            return self.labels.sum(axis=0, dtype=np.int64)
        return np.bincount(self.labels, minlength=num_classes)

    @property
    def multilabel(self) -> bool:
        """Whether an image can have several labels."""
        return self.labels.ndim == 2

    @property
    def strata(self) -> np.ndarray:
        """int64 (N,), by which the split is cut and sampled: the label of each image, of several the rarest.

        Images without a label have the number after the last class.
        """
        if not self.multilabel:
            return self.labels
        rank = np.argsort(np.argsort(self.class_counts(0), kind="stable"), kind="stable")
        count = len(rank)
        rarest = np.where(self.labels > 0, rank, count).min(axis=1, initial=count)
        return np.append(np.argsort(rank, kind="stable"), count)[rarest]


@dataclass(frozen=True, eq=False)
class Source:
    """The splits of a data set."""

    class_names: tuple[str, ...]
    """Unique, in the order of the labels: names of folders, which a data set may make readable."""
    train: Split
    val: Split | None = None
    """None: split off train by `splits.with_validation`."""
    test: Split | None = None
    bad: tuple[BadFile, ...] = ()
    """What `without` left out."""
    notes: tuple[str, ...] = ()
    """Short sentences for the log on what may surprise the user."""

    def splits(self) -> dict[str, Split]:
        """The existing splits by name, in the order of SPLITS."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def tested_on(self, tested: Split, class_names: Sequence[str]) -> Source:
        """The data set with `tested` as its test images, no validation images, and labels by `class_names`.

        Raises UserError for a class that is not among `class_names`.
        """
        unknown = [name for name in self.class_names if name not in class_names]
        if unknown:
            more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
            close = nearest(unknown[0], class_names)
            raise UserError(f"The model was not trained with the class {unknown[0]!r}{more}. {close}")
        places = np.array([list(class_names).index(name) for name in self.class_names])
        train, test = (_relabelled(part, places, len(class_names)) for part in (self.train, tested))
        return replace(self, class_names=tuple(class_names), train=train, val=None, test=test)

    def without(self, bad: Sequence[BadFile]) -> Source:
        """The data set without the `bad` files, which are added to its own `bad`, and without splits that they emptied.

        Raises UserError if a class has no training image left.
        """
        if not bad:
            return self
        paths = {file.path for file in bad}
        train = self.train.without(paths)
        counts = (split.class_counts(len(self.class_names)) for split in (self.train, train))
        lost = np.flatnonzero(np.greater(*(count > 0 for count in counts)))
        if len(lost):
            labels = self.train.labels
            has = labels[:, lost[0]] > 0 if self.train.multilabel else labels == lost[0]
            at = int(np.flatnonzero(has)[0])
            reason = next(file.reason for file in bad if file.path == self.train.files[at])
            raise UserError(
                f"No training image of class '{self.class_names[lost[0]]}' can be used "
                f"(for example {self.train.files[at]}: {reason}). Replace the files or remove the class."
            )
        left = {name: split.without(paths) for name, split in self.splits().items() if name != "train"}
        empty = [name for name, split in left.items() if not len(split)]
        notes = tuple(f"None of the {len(self.splits()[name])} {name} images can be read." for name in empty)
        val, test = (left[name] if name in left and name not in empty else None for name in ("val", "test"))
        return replace(self, train=train, val=val, test=test, bad=(*self.bad, *bad), notes=(*self.notes, *notes))


def _relabelled(split: Split, places: np.ndarray, num_classes: int) -> Split:
    """`split` where class i is now `places[i]` of `num_classes`."""
    if not split.multilabel:
        return replace(split, labels=places[split.labels])
    labels = np.zeros((len(split), num_classes), dtype=np.uint8)
    labels[:, places] = split.labels
    return replace(split, labels=labels)
