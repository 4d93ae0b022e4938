"""`data=caltech256`: 30,607 photographs of 256 classes and clutter in `256_ObjectCategories/NNN.name/*.jpg`."""

from __future__ import annotations

import re
from pathlib import Path

from imgcls.data.archives import Archive, ArchivedDataModule
from imgcls.data.folders import class_folders, find_split, readable_names
from imgcls.data.sources import Source
from imgcls.data.splits import cut

TEST_SHARE = 0.2
VAL_SHARE_OF_TRAIN = 0.125  # 10 % of all
_CLASS = re.compile(r"\d{3}\.")


class Caltech256(ArchivedDataModule):
    """Caltech-256 (Griffin, Holub and Perona 2007), split 70/10/20 in each class by `seed` and file names.

    Args:
        clutter: keep the 257th folder, whose images belong to none of the classes.
        **options: of ArchivedDataModule; `val_fraction` is 1/8 by default.
    """

    title = "Caltech-256"
    layout = "256_ObjectCategories/NNN.name"
    default_archive = Archive(
        "https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",
        md5="67b4f42ca05d46448c6bb8ecd2220f6d",
    )

    def __init__(self, root: str | Path | None = None, *, clutter: bool = False, **options: object) -> None:
        super().__init__(root, **{"val_fraction": VAL_SHARE_OF_TRAIN, **options})  # type: ignore[arg-type]
        self.clutter = clutter

    def find(self) -> Source:
        """All classes, 20 % of each for the test; validation is split off by `val_fraction`."""
        folder = self.locate(["256_ObjectCategories"], lambda place: bool(_classes(place)))
        return find_caltech256(folder, self.seed, clutter=self.clutter)


def find_caltech256(folder: Path, seed: int, *, clutter: bool = False) -> Source:
    """The images of the folders `NNN.name` in `folder`, 20 % of each class for the test. Raises UserError."""
    names = [name for name in _classes(folder) if clutter or not name.endswith(".clutter")]
    folders, everything = find_split(folder, folder, names)
    train, test = cut(everything, [1 - TEST_SHARE, TEST_SHARE], seed)
    return Source(readable_names(folders), train, None, test if len(test) else None)


def _classes(folder: Path) -> list[str]:
    return [name for name in class_folders(folder) if _CLASS.match(name)]
