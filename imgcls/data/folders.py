"""Find images in folders, one folder per class."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from imgcls.data.names import picture_name
from imgcls.data.sources import FilesIn, Split
from imgcls.errors import UserError
from imgcls.images.signatures import PICTURE_SUFFIXES, has_picture_signature

NO_CLASSES = frozenset({"__MACOSX", "@eaDir", "lost+found"})  # folders that other programs create
MAX_TRIED = 200  # files without the suffix of an image that are opened to see whether they are one


def class_folders(root: Path) -> list[str]:
    """The names of the folders in `root` that can be classes, sorted; hidden ones are skipped."""
    return sorted(entry.name for entry in _scan(str(root)) if entry.name not in NO_CLASSES and entry.is_dir())


def pictures_in(folder: Path, within: Sequence[Path] = (), others: list[str] | None = None) -> list[str]:
    """All images in `folder` and its subfolders, as sorted paths relative to it.

    Images are recognised by their suffix; hidden files are skipped. Links are followed, but no folder is entered twice,
    and the folders `within` which `folder` is are not entered. The paths of files without the suffix of an image are
    appended to `others`.
    """
    return sorted(_walk(str(folder), "", {_identity(str(parent)) for parent in within}, others))


def describe_unrecognised(others: Sequence[str]) -> str:
    """A sentence about the images among the files `others`, which are not used because of their suffix; '' if none."""
    tried = others[:MAX_TRIED]
    images = [path for path in tried if has_picture_signature(Path(path))]
    if not images:
        return ""
    count = f"{len(images)} of the first {len(tried):,}" if len(others) > len(tried) else f"{len(images)}"
    return (
        f"{count} files are images, but are not used, as their names do not end like one: {picture_name(images[0])}. "
        f"Rename them, for example to {picture_name(Path(images[0]).name)}.jpg."
    )


def find_split(
    root: Path,
    folder: Path,
    classes: Sequence[str] | None = None,
    *,
    min_classes: int = 2,
    others: list[str] | None = None,
) -> tuple[tuple[str, ...], Split]:
    """The images of `folder/<class>/`, named by their path from `root`.

    Args:
        root: the data set's folder.
        folder: the folder of the split: `root` or a folder in it.
        classes: the class folders that it must have; all existing ones if None.
        min_classes: the smallest number of classes.
        others: receives the paths of the files that are not used.

    Returns:
        The class folders, in the order of the labels, and the split.

    Raises:
        UserError: too few classes, or a class without images.
    """
    found = {picture_name(name): name for name in class_folders(folder)}
    classes = tuple(found) if classes is None else tuple(classes)
    others = [] if others is None else others
    if not classes:
        loose = pictures_in(folder)
        hint = f" Its {len(loose)} images are in no class folder." if loose else ""
        raise UserError(f"{folder} has no class folders.{hint} Expected {folder.name}/<class>/<picture>.jpg.")
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    paths: list[str] = []
    counts: list[int] = []
    for name in classes:
        place = folder / found.get(name, name)
        unused: list[str] = []
        inside = pictures_in(place, [root, folder], unused) if name in found else []
        unused = [f"{place}{os.sep}{path}" for path in unused]
        if not inside:
            advice = describe_unrecognised(unused) or "Add images or remove the class."
            raise UserError(f"The class {name!r} has no images in {place}. {advice}")
        others += unused
        paths += [f"{prefix}{place.name}/{path}" for path in inside]
        counts.append(len(inside))
    if len(classes) < min_classes:
        deeper = class_folders(folder / found[classes[0]])
        hint = f" If {', '.join(deeper[:3])} … are the classes: data.root={folder / classes[0]}." if deeper else ""
        raise UserError(f"{folder} has only one class, {classes[0]!r}; a classifier needs at least two.{hint}")
    names = tuple(map(picture_name, paths))  # most are the same objects
    return classes, Split(names, np.repeat(np.arange(len(classes)), counts), FilesIn(root, paths))


def find_splits(
    root: Path, places: Mapping[str, Path], *, min_classes: int = 2, others: list[str] | None = None
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """The class folders and the splits of the folders in `places`, which must have the same classes.

    `min_classes` and `others` are those of `find_split`.
    Raises UserError that names the classes which only one of two splits has.
    """
    classes_of = {split: {picture_name(name) for name in class_folders(place)} for split, place in places.items()}
    first, *further = places
    for other in further if classes_of[first] else ():
        for has, lacks in ((first, other), (other, first)):
            if odd := sorted(classes_of[has] - classes_of[lacks]):
                more = f" and {len(odd) - 3} more" if odd[3:] else ""
                raise UserError(
                    f"The classes of {places[first].name} and {places[other].name} in {root} differ: "
                    f"{', '.join(map(repr, odd[:3]))}{more} in {places[has].name} but not in {places[lacks].name}. "
                    "Both need the same class folders."
                )
    classes, train = find_split(root, places[first], min_classes=min_classes, others=others)
    splits = {first: train} | {
        name: find_split(root, places[name], classes, min_classes=min_classes, others=others)[1] for name in further
    }
    return classes, splits


def need_folder(root: Path | None, name: str) -> Path:
    """`root`, checked to be a folder that is not empty. Raises UserError."""
    if root is None:
        raise UserError(f"data={name} needs data.root=DIR, the folder of the images.")
    if not root.is_dir():
        raise UserError(f"data.root={root}: {'this is a file, not a folder' if root.exists() else 'no such folder'}.")
    if next(_scan(str(root)), None) is None:
        raise UserError(f"data.root={root}: the folder is empty.")
    return root


def _walk(folder: str, prefix: str, entered: set[tuple[int, int]], others: list[str] | None) -> Iterator[str]:
    here = _identity(folder)
    if here in entered:
        return
    entered.add(here)
    for entry in _scan(folder):
        name, suffix = entry.name, os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - for millions of files
        if entry.is_dir():
            if name not in NO_CLASSES:
                yield from _walk(entry.path, f"{prefix}{name}/", entered, others)
        elif suffix in PICTURE_SUFFIXES:
            # a broken link is kept, so that it is listed among the bad files; a pipe is not
            if entry.is_file() or not os.path.exists(entry.path):  # noqa: PTH110
                yield f"{prefix}{name}"
        elif others is not None:
            others.append(f"{prefix}{name}")


def _scan(folder: str) -> Iterator[os.DirEntry[str]]:
    """The content of `folder`, without hidden files and folders."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except PermissionError as error:
        raise UserError(f"{folder} may not be read. Change its permissions or choose another folder.") from error


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


_NUMBER = re.compile(r"^(?:\d+[.\-_ ]+|n\d{8}[.\-_ ]+)(?=\D)")
_CALTECH_101 = re.compile(r"-101$")


def readable(folder: str) -> str:
    """The class name of a folder: without its number, and with spaces for underscores.

    >>> [readable(name) for name in ("002.Afghan_hound", "n02085620-Chihuahua", "127.laptop-101", "coffee-mug", "7")]
    ['Afghan hound', 'Chihuahua', 'laptop', 'coffee-mug', '7']
    """
    name = _NUMBER.sub("", folder.strip())
    if name != folder.strip():
        name = _CALTECH_101.sub("", name)
    return " ".join(name.replace("_", " ").split()) or folder


def readable_names(folders: Sequence[str]) -> tuple[str, ...]:
    """The class names of `folders`, in their order; the folder names themselves where two would become equal."""
    names = [readable(folder) for folder in folders]
    return tuple(names) if len(set(names)) == len(names) else tuple(folders)
