"""`data=caltech256`: 30,607 photographs of 256 classes and clutter, `256_ObjectCategories/NNN.name/*.jpg`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imgcls.data.archives import Archive, ArchivedDataModule
from imgcls.data.folders import class_folders, find_split
from imgcls.data.labels import readable_names
from imgcls.data.sources import Source
from imgcls.data.splits import cut

SHARES = [0.7, 0.1, 0.2]  # train, validation, test


class Caltech256(ArchivedDataModule):
    """Caltech-256 (Griffin, Holub and Perona 2007), split 70/10/20 in each class by `seed` and file names.

    Args:
        clutter: keep the 257th folder, pictures of none of the classes.
        **options: of ArchivedDataModule.
    """

    title = "Caltech-256"
    layout = "256_ObjectCategories/NNN.name"
    default_archive = Archive(
        "https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",
        md5="67b4f42ca05d46448c6bb8ecd2220f6d",
    )

    def __init__(self, root: str | Path | None = None, *, clutter: bool = False, **options: object) -> None:
        super().__init__(root, **options)  # type: ignore[arg-type]
        self.clutter = clutter

    def find(self) -> Source:
        """All classes, split."""
        folder = self.located(["256_ObjectCategories"], holds=lambda path: bool(class_folders(path)))
        folders = [name for name in class_folders(folder) if self.clutter or not name.endswith(".clutter")]
        found, everything = find_split(folder, folder, folders)
        train, val, test = cut(everything, SHARES, self.seed)
        assert len(np.unique(train.labels)) == len(found)
        return Source(readable_names(found), train, val if len(val) else None, test if len(test) else None)
