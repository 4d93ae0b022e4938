"""`data=imagefolder`: your own pictures, one folder a class."""

from __future__ import annotations

from pathlib import Path

from imgcls.data.folders import class_folders, find_split, find_splits, need_folder
from imgcls.data.labels import readable_names
from imgcls.data.module import ImageDataModule
from imgcls.data.sources import Source
from imgcls.data.splits import cut

USUAL_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class ImageFolder(ImageDataModule):
    """Folders train, val and test (val and test may be missing), or one folder of class folders that is split.

    Args:
        test_fraction: the share of one folder's pictures that is kept for the test.
        **options: of ImageDataModule.
    """

    def __init__(self, root: str | Path | None = None, *, test_fraction: float = 0.2, **options: object) -> None:
        super().__init__(root, **options)  # type: ignore[arg-type]
        self.test_fraction = test_fraction

    def find(self) -> Source:
        """The pictures below `root`."""
        return find_folder(need_folder(self.root, "imagefolder"), self.test_fraction, self.seed)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits in `root`, by `train`, `val`, `test`; in any usual spelling."""
    inside = {name.lower(): root / name for name in class_folders(root)}
    found = {}
    for split, spellings in USUAL_NAMES.items():
        for spelling in spellings:
            if spelling in inside:
                found[split] = inside[spelling]
                break
    return found


def find_folder(root: Path, test_fraction: float, seed: int) -> Source:
    """The pictures of `root`, split as its folders say, or by `seed` where it has no folder `train`."""
    places = split_folders(root)
    if "train" in places:
        names, splits = find_splits(root, places)
        return Source(names, splits["train"], splits.get("val"), splits.get("test"))
    folders, everything = find_split(root, root)
    if test_fraction == 0:
        return Source(readable_names(folders), everything)
    train, test = cut(everything, [1 - test_fraction, test_fraction], seed)
    return Source(readable_names(folders), train, None, test if len(test) else None)
