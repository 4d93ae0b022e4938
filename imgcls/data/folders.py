"""Finding pictures in folders: one folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from imgcls.data.labels import readable_names
from imgcls.data.sources import Split, picture_name
from imgcls.errors import UserError
from imgcls.pictures import PICTURE_SUFFIXES


def class_folders(root: Path) -> list[str]:
    """The names of the folders in `root` that can be classes, sorted; hidden ones are none."""
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def pictures_in(folder: Path) -> list[Path]:
    """All pictures in `folder` and the folders in it, sorted; links are followed, but never in a circle."""
    return sorted(_walk(folder, frozenset()))


def find_split(root: Path, folder: Path, folders: Sequence[str] | None = None) -> tuple[tuple[str, ...], Split]:
    """The pictures of `folder/<class>/`, named by their path from `root`.

    Args:
        root: the data set's folder.
        folder: the folder of the split.
        folders: the classes it must have; those that it has, if None.

    Returns:
        The class folders, in the order of the labels, and the split.

    Raises:
        UserError: no class, one class only, or a class without a picture.
    """
    found = class_folders(folder)
    folders = tuple(folders if folders is not None else found)
    if not folders:
        hint = " It holds pictures, but not in one folder a class." if pictures_in(folder) else ""
        raise UserError(f"{folder} holds no class folders.{hint} Expected {folder.name}/<class>/<picture>.jpg.")
    names: list[str] = []
    labels: list[int] = []
    files: list[Path] = []
    for label, name in enumerate(folders):
        inside = pictures_in(folder / name) if name in found else []
        if not inside:
            raise UserError(f"The class {name!r} has no picture in {folder / name}. Add pictures or remove the folder.")
        names += [picture_name(str(file.relative_to(root))) for file in inside]
        labels += [label] * len(inside)
        files += inside
    if len(folders) == 1:
        raise UserError(f"{folder} has only one class ({folders[0]}). A classifier needs two or more class folders.")
    return folders, Split(tuple(names), np.array(labels, dtype=np.int64), tuple(files))


def find_splits(root: Path, places: dict[str, Path]) -> tuple[tuple[str, ...], dict[str, Split]]:
    """The splits in `places`, which must have the same classes; readable class names and the splits.

    Raises UserError that names a class which one split has and another has not.
    """
    first, *others = places
    reference = class_folders(places[first])
    for other in others:
        theirs = class_folders(places[other])
        odd = sorted(set(reference) ^ set(theirs))
        if odd:
            has, lacks = (first, other) if odd[0] in reference else (other, first)
            more = f" (and {len(odd) - 1} more differ)" if len(odd) > 1 else ""
            raise UserError(
                f"The classes of {places[first].name} and {places[other].name} in {root} differ: "
                f"{odd[0]!r} is in {places[has].name} but not in {places[lacks].name}{more}."
            )
    folders: tuple[str, ...] = ()
    splits = {}
    for name, place in places.items():
        folders, splits[name] = find_split(root, place, reference)
    return readable_names(folders), splits


def need_folder(root: Path | None, name: str) -> Path:
    """`root`, which must be a folder with something in it."""
    if root is None:
        raise UserError(f"data={name} needs data.root=DIR, the folder of the pictures.")
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder.")
    if not any(root.iterdir()):
        raise UserError(f"data.root={root}: this folder is empty.")
    return root


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), above | {here})
        elif os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES and entry.is_file():  # noqa: PTH122 - 60,000 times
            yield Path(entry.path)
