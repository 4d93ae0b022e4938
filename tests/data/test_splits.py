"""Splits for any number of images, in any order on disk, and after images are added."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from imgcls.data.imagefolder import ImageFolder, find_folder
from imgcls.data.sources import FilesIn, Source, Split
from imgcls.data.splits import cut, with_validation
from imgcls.data.table import Table
from imgcls.errors import UserError

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


def test_classes_of_one_image_leave_none_for_validation() -> None:
    with pytest.raises(UserError, match=r"12 training images is none .each class keeps at least one"):
        with_validation(Source(tuple(map(str, range(12))), named([1] * 12)), 0.1, seed=0)


def test_validation_and_test_do_not_overlap() -> None:
    train, test = cut(named([200, 200]), [0.8, 0.2], seed=0)
    source = with_validation(Source(("a", "b"), train, test=test), 0.1, seed=0)
    names = [set(split.names) for split in source.splits().values()]
    assert len(set.union(*names)) == sum(map(len, names)) == 400
    assert all(len(np.unique(split.labels)) == 2 for split in source.splits().values())


def grouped(rng: np.random.Generator, groups: int, classes: int) -> Split:
    """Groups of 1 to 12 images, most of them of one class."""
    labels: list[int] = []
    members: list[str] = []
    for group in range(groups):
        count, main = rng.integers(1, 13), rng.integers(classes)
        labels += np.where(rng.random(count) < 0.8, main, rng.integers(classes, size=count)).tolist()
        members += [f"p{group}"] * count
    order = rng.permutation(len(labels))
    names = tuple(f"{number:05}.jpg" for number in range(len(labels)))
    return Split(names, np.array(labels)[order], FilesIn("", names), groups=tuple(members[i] for i in order))


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_never_in_two_parts(seed: int) -> None:
    split = grouped(np.random.default_rng(seed), 300, 5)
    parts = cut(split, SHARES, seed)
    assert sorted(name for part in parts for name in part.names) == sorted(split.names)
    members = [set(part.groups or ()) for part in parts]
    assert sum(map(len, members)) == len(set.union(*members)) == 300
    for share, part in zip(SHARES, parts, strict=True):
        counts, all_counts = part.class_counts(5), split.class_counts(5)
        assert np.abs(counts / all_counts - share).max() < 0.02, "stratified, as groups of many images are rare"
    other = cut(split, SHARES, seed + 1)
    assert set(other[2].groups or ()) != members[2]


def test_few_groups_leave_every_class_in_training_and_no_split_empty() -> None:
    names = tuple(f"{number}.jpg" for number in range(40))
    groups = tuple("abcd"[number // 10] for number in range(40))
    labels = np.array([number % 2 for number in range(40)])
    parts = cut(Split(names, labels, FilesIn("", names), groups=groups), SHARES, 0)
    assert sorted(len(part) for part in parts) == [10, 10, 20]
    only_d = Split(names, np.array([2 if group == "d" else 0 for group in groups]), FilesIn("", names), groups=groups)
    assert "d" in set(cut(only_d, [0.1, 0.9], 0)[0].groups or ()), "the only group of its class"


def test_groups_by_a_pattern_on_names(tmp_path: Path) -> None:
    names = [f"{label}/{patient:02}_{shot}.jpg" for label in "ab" for patient in range(20) for shot in range(3)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    data = ImageFolder(tmp_path, group=r"/(\d+)_")
    patients = [{name[2:4] for name in split.names} for split in data.source.splits().values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 20
    assert [len(split) for split in data.source.splits().values()] == [84, 12, 24]
    assert data.source.notes == ()
    for pattern, complaint in [("x(y", "not a regular expression"), ("(zebra)", "matches no image")]:
        with pytest.raises(UserError, match=complaint):
            ImageFolder(tmp_path, group=pattern).find()


def test_given_splits_that_share_groups_are_noted(tmp_path: Path) -> None:
    rows = [f"{number}.jpg,{number % 2},{'test' if number > 7 else 'train'},p{number // 2 % 5}" for number in range(12)]
    for row in rows:
        (tmp_path / row.partition(",")[0]).touch()
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split,patient_id", *rows]))
    [note] = Table(table=tmp_path / "labels.csv", val_fraction=0.0).source.notes
    assert note.startswith("train and test share 1 of the groups")
    assert "(p0)" in note
    data = Table(table=tmp_path / "labels.csv", val_fraction=0.3)
    assert not set(data.source.train.groups or ()) & set(data.source.val.groups or ())  # type: ignore[union-attr]
