"""Folds hold out each image once, keep classes and groups, and share the pixels of the whole data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imgcls.data.folds import Fold, fold_positions, open_fold
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.sources import Split
from imgcls.data.stores import placement
from imgcls.errors import UserError


def split_of(counts: list[int], groups: tuple[str, ...] | None = None) -> Split:
    names = [f"{label}/{number:04}.jpg" for label, count in enumerate(counts) for number in range(count)]
    labels = np.array([int(name.split("/")[0]) for name in names])
    return Split(tuple(names), labels, tuple(Path(name) for name in names), groups=groups)


@pytest.mark.parametrize("counts", [[50, 33, 7], [3, 4, 5, 2], [101] * 4])
def test_each_image_is_held_out_once_with_the_share_of_its_class(counts: list[int]) -> None:
    split, names = split_of(counts), tuple(map(str, range(len(counts))))
    folds = fold_positions(split, names, 5, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(split)))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    held_out = np.array([split.subset(fold).class_counts(len(counts)) for fold in folds])
    assert np.abs(held_out - np.array(counts) / 5).max() < 1
    assert not np.array_equal(folds[0], fold_positions(split, names, 5, seed=1)[0])


def test_a_group_is_in_one_fold_and_none_of_them_is_larger() -> None:
    rng = np.random.default_rng(0)
    counts = [60, 40]
    groups = tuple(f"patient {number}" for number in rng.integers(0, 25, 100))
    split = split_of(counts, groups)
    folds = fold_positions(split, ("a", "b"), 4, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(100))
    members = [{groups[position] for position in fold.tolist()} for fold in folds]
    assert sum(map(len, members)) == len(set(groups)), "a group is in two folds"
    assert max(map(len, folds)) <= 32


def test_a_class_that_would_be_held_out_whole_is_named() -> None:
    with pytest.raises(UserError, match="without class 'rare', whose 1 image would"):
        fold_positions(split_of([20, 1]), ("usual", "rare"), 3, seed=0)
    with pytest.raises(UserError, match="3 images are too few for 5 folds"):
        fold_positions(split_of([2, 1]), ("a", "b"), 5, seed=0)


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "1", "1/5:test", "a/b"])
def test_other_texts_are_no_fold(text: str) -> None:
    with pytest.raises(UserError, match="such as 1/5"):
        Fold.parse(text)


def test_the_folds_share_pixels_that_are_decoded_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = placement.decode_all
    monkeypatch.setattr(
        placement, "decode_all", lambda split, *rest: decoded.append(len(split)) or original(split, *rest)
    )
    bad = sorted((pictures / "train").glob("*/*"))[3]
    bad.write_bytes(b"no image")
    whole = ImageFolder(pictures, image_size=24, resize=24, val_fraction=0.0, store="memory")
    own_test = whole.source.test
    seen: list[str] = []
    for number in (1, 2, 3):
        opened = open_fold(whole, Fold(number, 3), val_fraction=0.2)
        fold = ImageFolder(pictures, image_size=24, resize=24, batch_size=8, store="memory", opened=opened)
        fold.setup()
        splits = {name: set(split.names) for name, split in fold.source.splits().items()}
        assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 71, "the splits overlap"
        assert own_test is not None
        assert not splits["test"] & set(own_test.names)
        for name, split in fold.source.splits().items():
            pixels = fold.store_of(name, evaluation=True).gather(torch.arange(len(split)))
            expected = [fold.preprocessing.pixels(split.open(position)) for position in range(len(split))]
            assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), np.stack(expected))
        seen += fold.source.test.names if fold.source.test else ()
    assert sorted(seen) == sorted(whole.source.train.names), "an image is held out twice, or never"
    assert len(decoded) <= 2, "the images are decoded once for training and once for evaluation"


def test_held_out_images_can_be_the_validation_images(pictures: Path) -> None:
    whole = ImageFolder(pictures, image_size=24, resize=24, val_fraction=0.0)
    opened = open_fold(whole, Fold.parse("2/4:val"), val_fraction=0.2)
    assert opened.source is not None
    assert {name: len(split) for name, split in opened.source.splits().items()} == {"train": 54, "val": 18}
