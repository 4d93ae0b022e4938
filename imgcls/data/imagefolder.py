"""`data=imagefolder`: your own pictures, one folder a class."""

from __future__ import annotations

from pathlib import Path

from imgcls.data.folders import class_folders, find_split, find_splits, need_folder, pictures_in, readable_names
from imgcls.data.module import ImageDataModule
from imgcls.data.sources import Source
from imgcls.data.splits import cut
from imgcls.errors import UserError

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
        if not 0 <= test_fraction < 1:
            raise UserError(f"data.test_fraction={test_fraction}: must be a share of at least 0 and below 1.")
        self.test_fraction = test_fraction

    def find(self) -> Source:
        """The pictures below `root`."""
        return find_folder(need_folder(self.root, "imagefolder"), self.test_fraction, self.seed)


def find_folder(root: Path, test_fraction: float, seed: int) -> Source:
    """The pictures of `root`, split as its folders say, or by `seed` where it is one folder of class folders."""
    places = split_folders(root)
    if places:
        return find_tree(root, places)
    folders, everything = find_split(root, root)
    if test_fraction == 0:
        return Source(readable_names(folders), everything)
    train, test = cut(everything, [1 - test_fraction, test_fraction], seed)
    return Source(readable_names(folders), train, None, test if len(test) else None)


def find_tree(root: Path, places: dict[str, Path]) -> Source:
    """The pictures of the folders of the splits; a folder of unsorted test pictures is left out, with a note."""
    if "train" not in places:
        have = ", ".join(place.name for place in places.values())
        raise UserError(f"{root} has {have} but no folder train. Expected train/<class>/<picture>.jpg.")
    notes = []
    if "test" in places and not class_folders(places["test"]) and (loose := pictures_in(places["test"])):
        notes.append(f"The {len(loose)} pictures in {places['test']} lie in no class folder and are not used.")
        places = {split: place for split, place in places.items() if split != "test"}
    names, splits = find_splits(root, places)
    return Source(names, splits["train"], splits.get("val"), splits.get("test"), notes=tuple(notes))


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits in `root`, by `train`, `val`, `test`; in any usual spelling.

    None where folders of other names lie beside a `train` that holds no folders: then it is a class, of trains.
    Raises UserError where two folders could be the same split.
    """
    inside = class_folders(root)
    found: dict[str, Path] = {}
    for split, spellings in USUAL_NAMES.items():
        matching = [name for name in inside if name.lower() in spellings]
        if matching[1:]:
            raise UserError(f"{root} has {' and '.join(matching)}; which one is it? Rename or remove the other.")
        if matching:
            found[split] = root / matching[0]
    others = len(inside) > len(found)
    return {} if others and not ("train" in found and class_folders(found["train"])) else found
