"""`data=imagefolder`: your own images, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imgcls.data.folders import class_folders, describe_unrecognised, find_split, find_splits, need_folder, pictures_in
from imgcls.data.module import ImageDataModule
from imgcls.data.sources import Source
from imgcls.data.splits import cut, with_groups
from imgcls.errors import UserError

USUAL_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class ImageFolder(ImageDataModule):
    """Folders train, val and test (val and test may be missing), or one folder of class folders that is split.

    Args:
        test_fraction: the share of a single folder's images that is used for the test.
        **options: of ImageDataModule.
    """

    def __init__(self, root: str | Path | None = None, *, test_fraction: float = 0.2, **options: object) -> None:
        super().__init__(root, **options)  # type: ignore[arg-type]
        if not 0 <= test_fraction < 1:
            raise UserError(f"data.test_fraction={test_fraction} must be at least 0 and less than 1.")
        self.test_fraction = test_fraction

    def find(self) -> Source:
        """The images below `root`."""
        root = need_folder(self.root, "imagefolder")
        return find_folder(root, self.test_fraction, self.seed, self.group, min_classes=self.min_classes)


def find_folder(
    root: Path, test_fraction: float, seed: int, group: str | None = None, *, min_classes: int = 2
) -> Source:
    """The images of `root`, split as its folders are, or by `seed` if it is one folder of class folders.

    `group` is a regular expression on their names, see `with_groups`.
    """
    places = split_folders(root)
    if places:
        return find_tree(root, places, min_classes=min_classes)
    others: list[str] = []
    folders, everything = find_split(root, root, min_classes=min_classes, others=others)
    source = Source(tuple(folders), everything, notes=_notes(others))
    return with_test(source, test_fraction, seed, group)


def with_test(source: Source, test_fraction: float, seed: int, group: str | None) -> Source:
    """`source` with `test_fraction` of each class's training images moved to a test split; groups stay together."""
    if group is not None:
        source = with_groups(source, group)
    if test_fraction == 0:
        return source
    train, test = cut(source.train, [1 - test_fraction, test_fraction], seed)
    return replace(source, train=train, test=test if len(test) else None)


def _notes(others: Sequence[str]) -> tuple[str, ...]:
    return tuple(filter(None, [describe_unrecognised(others)]))


def find_tree(
    root: Path,
    places: dict[str, Path],
    required: Sequence[str] = ("train",),
    layout: str = "train/<class>/<picture>.jpg",
    *,
    min_classes: int = 2,
) -> Source:
    """The images of the splits' folders in `places`; a test folder without class folders is skipped, with a note.

    Raises UserError with the expected `layout` for `required` splits that are missing.
    """
    if missing := [split for split in required if split not in places]:
        raise UserError(f"{root} has no folder {missing[0]!r}. Expected {layout}.")
    notes = []
    if "test" in places and not class_folders(places["test"]) and (loose := pictures_in(places["test"])):
        notes.append(f"The {len(loose)} images in {places['test']} are in no class folder and are not used.")
        places = {split: place for split, place in places.items() if split != "test"}
    others: list[str] = []
    names, splits = find_splits(root, places, min_classes=min_classes, others=others)
    return Source(names, splits["train"], splits.get("val"), splits.get("test"), notes=(*notes, *_notes(others)))


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits in `root`, by `train`, `val` and `test`, in any usual spelling.

    Empty if there are other folders beside a `train` without subfolders: then it is a class, of trains.
    Raises UserError if two folders could be the same split.
    """
    inside = class_folders(root)
    found: dict[str, Path] = {}
    for split, spellings in USUAL_NAMES.items():
        matching = [name for name in inside if name.lower() in spellings]
        if matching[1:]:
            raise UserError(f"{root} has {' and '.join(matching)} for the same split. Rename or remove one of them.")
        if matching:
            found[split] = root / matching[0]
    others = len(inside) > len(found)
    return {} if others and not ("train" in found and class_folders(found["train"])) else found
