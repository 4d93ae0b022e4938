"""The folds of a cross-validation: a data set of which one part of the images is held out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from imgcls.data.module import ImageDataModule, Opened, Whole
from imgcls.data.sources import Source, Split
from imgcls.data.splits import cut_positions, deal
from imgcls.data.stores.store import part_of_store
from imgcls.errors import UserError

PATTERN = re.compile(r"(\d+)/(\d+)(:val)?")


@dataclass(frozen=True)
class Fold:
    """One of the `count` folds, by its `number` from 1; its held-out images are the split `held_out`."""

    number: int
    count: int
    held_out: str = "test"

    @classmethod
    def parse(cls, text: str) -> Fold:
        """The fold that `str` wrote. Raises UserError for any other text.

        >>> Fold.parse("2/5"), Fold.parse("1/3:val").held_out
        (Fold(number=2, count=5, held_out='test'), 'val')
        """
        found = PATTERN.fullmatch(str(text))
        if found is None or not 1 <= int(found[1]) <= int(found[2]) or int(found[2]) < 2:
            raise UserError(f"data.fold={text} must be the number of a fold and of all folds, such as 1/5.")
        return cls(int(found[1]), int(found[2]), "val" if found[3] else "test")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}{':val' if self.held_out == 'val' else ''}"


def development_images(source: Source) -> Split:
    """The images that folds are cut from: those for training and validation. Test images stay out of them."""
    return source.train if source.val is None else Split.joined([source.train, source.val])


def fold_positions(split: Split, class_names: tuple[str, ...], count: int, seed: int) -> list[np.ndarray]:
    """The positions of the held-out images of each of `count` folds, int64 (n,), with equal shares of each class.

    The images of a group are in one fold, see `imgcls.data.splits.deal`.

    Raises:
        UserError: all images of a class would be held out together, or a fold would have no image.
    """
    folds = deal(split, count, seed)
    grouped = "" if split.groups is None else f" in {len(set(split.groups))} groups"
    if any(not len(fold) for fold in folds):
        raise UserError(f"{len(split)} images{grouped} are too few for {count} folds. Choose a smaller cv.folds.")
    counts = split.class_counts(len(class_names))
    for fold in folds:
        alone = np.flatnonzero((split.subset(fold).class_counts(len(class_names)) == counts) & (counts > 0))
        if len(alone):
            images = f"{counts[alone[0]]} image{'s' if counts[alone[0]] > 1 else ''}"
            kind = "groups" if grouped else "images"
            raise UserError(
                f"A fold would train without class {class_names[alone[0]]!r}, whose {images} would all be held out. "
                f"Each class needs at least two {kind} for training and validation."
            )
    return folds


def open_fold(images: ImageDataModule, fold: Fold, val_fraction: float) -> Opened:
    """What a data module of this fold opens: parts of the training images of `images`, whose pixels are shared.

    Args:
        images: a data module of the whole data set, without a validation split of its own making. Its validation
            images are joined to its training images.
        fold: the fold; its held-out images are its test images, or with `held_out='val'` its validation images.
        val_fraction: share of the other images that is used for validation; with `held_out='val'` none.
    """
    source = images.source
    if source.val is not None:
        images.opened.source = replace(source, train=development_images(source), val=None)
    images.setup("fit")  # leaves out the images that cannot be read
    evaluated, trained = images.store_of("train", evaluation=True), images.store_of("train")
    source = images.source
    held_out = fold_positions(source.train, source.class_names, fold.count, images.seed)[fold.number - 1]
    rest = np.setdiff1d(np.arange(len(source.train)), held_out)
    places = {"train": rest, fold.held_out: held_out}
    if fold.held_out == "test" and val_fraction:
        parts = cut_positions(source.train.subset(rest), [1 - val_fraction, val_fraction], images.seed)
        places["train"], val = (rest[part] for part in parts)
        places |= {"val": val} if len(val) else {}
    splits = {name: source.train.subset(positions) for name, positions in places.items()}
    held = replace(source, train=splits["train"], val=splits.get("val"), test=splits.get("test"))
    opened = Opened(held, whole=Whole(images, places))
    for name, positions in places.items():
        opened.stores[name, images.recipe_of("train", evaluation=True)] = part_of_store(evaluated, positions)
    opened.stores["train", images.recipe_of("train")] = part_of_store(trained, places["train"])
    return opened
