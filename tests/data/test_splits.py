"""Splits for any number of images, in any order on disk, and after images are added."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from imgcls.data.imagefolder import find_folder
from imgcls.data.sources import Source, Split
from imgcls.data.splits import cut, with_validation

SHARES = [0.7, 0.1, 0.2]


def named(counts: Iterable[int]) -> Split:
    names = [f"{label}/{number:05}.jpg" for label, count in enumerate(counts) for number in range(count)]
    labels = [int(name.split("/")[0]) for name in names]
    return Split(tuple(names), np.array(labels), tuple(Path(name) for name in names))


def assign_parts(split: Split, seed: int = 0) -> dict[str, int]:
    """The number of the part that each image is in."""
    return {name: number for number, part in enumerate(cut(split, SHARES, seed)) for name in part.names}


@pytest.mark.parametrize("seed", range(20))
def test_any_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, rng.choice([3, 10, 200]), rng.integers(2, 60))
    shares = rng.dirichlet([4, 1, 1]) if seed % 2 else np.array(SHARES)
    split = named(counts)
    parts = cut(split, list(shares), seed)
    assert sorted(name for part in parts for name in part.names) == sorted(split.names), "each image is in one part"
    assert parts[0].class_counts(len(counts)).min() >= 1
    for share, part in zip(shares, parts, strict=True):
        assert np.abs(part.class_counts(len(counts)) - share * counts).max() <= 2
        assert all(path == Path(name) for path, name in zip(part.files, part.names, strict=True))


def test_added_images_move_few_others() -> None:
    counts = [100, 57, 1, 230]
    before = assign_parts(named(counts))
    for added in (1, 10):
        after = assign_parts(named([100, 57 + added, 1, 230]))
        moved = [name for name, part in before.items() if after[name] != part]
        of_the_class = [name for name in moved if name.startswith("1/")]
        assert len(of_the_class) <= added + 2, "two borders, each moved by up to the number of added images"
        assert all(sum(name.startswith(f"{label}/") for name in moved) <= 2 for label in (0, 2, 3))


def test_the_order_on_disk_does_not_matter(tmp_path: Path) -> None:
    names = [f"{label}/{number}.jpg" for label in ("b", "a") for number in range(30)]
    sources: list[Source] = []
    for root, order in ((tmp_path / "one", names), (tmp_path / "other", names[::-1])):
        for name in order:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        sources.append(with_validation(find_folder(root, 0.2, seed=5), 0.1, seed=5))
    one, other = ({name: split.names for name, split in source.splits().items()} for source in sources)
    assert one == other
    assert {name: len(names) for name, names in one.items()} == {"train": 43, "val": 5, "test": 12}


def test_validation_and_test_do_not_overlap() -> None:
    train, test = cut(named([200, 200]), [0.8, 0.2], seed=0)
    source = with_validation(Source(("a", "b"), train, test=test), 0.1, seed=0)
    names = [set(split.names) for split in source.splits().values()]
    assert len(set.union(*names)) == sum(map(len, names)) == 400
    assert all(len(np.unique(split.labels)) == 2 for split in source.splits().values())
