"""`data=table`: your own images, with labels in a table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.aws.s3 import is_remote
from imgcls.data.embedded import EmbeddedImages, unpack_images
from imgcls.data.imagefolder import USUAL_NAMES
from imgcls.data.module import ImageDataModule
from imgcls.data.names import picture_name
from imgcls.data.sources import SPLITS, BadFile, FilesIn, Source, Split
from imgcls.data.splits import cut, with_groups
from imgcls.data.table_files import Columns, find_table, read_columns, table_root
from imgcls.errors import UserError, nearest

USUAL_COLUMNS = {
    "file": (
        *("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "image_name"),
        *("image_file", "img", "picture", "photo", "photo_name", "photo_file"),
    ),
    "label": ("label", "labels", "class", "class_name", "category", "target", "tags", "species", "taxon", "breed"),
    "split": ("split", "set", "subset", "partition"),
    "group": ("group", "group_id", "patient", "patient_id", "subject_id", "product_id", "video_id"),
    "weight": ("weight", "sample_weight"),
}
"""The names of the columns that are found without an option; case, blanks and hyphens do not matter."""
FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "": 0}
LISTS_LOOKED_AT = 100  # cells, by which a column of lists is recognised
EXAMPLES = 3  # of wrong rows in a message
MISSING_SHARE = 0.5  # with more rows than this without a file, the folder is wrong and not the rows


class Table(ImageDataModule):
    """Images whose labels, and optionally splits, groups and weights, are the columns of a table.

    Args:
        root: the folder that the table's paths are relative to; the table's own if None.
        table: a .csv, .tsv, .jsonl or .parquet file, also in `root`.
        file_column, label_column, split_column, weight_column: names of columns; those of USUAL_COLUMNS if None.
        label_columns: columns with 0 or 1 for each label, of images with several labels.
        label_separator: what is between the labels of an image with several.
        test_fraction: share of the images that is used for testing if there is no column of splits.
        **options: of ImageDataModule; `group` may also be the name of a column.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        table: str | Path,
        file_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        weight_column: str | None = None,
        label_columns: Sequence[str] | None = None,
        label_separator: str | None = None,
        test_fraction: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(table_root(root, table), **options)
        if not 0 <= test_fraction < 1:
            raise UserError(f"data.test_fraction={test_fraction} must be at least 0 and less than 1.")
        self.label_columns, self.label_separator = list(label_columns or []), label_separator
        self.table, self.test_fraction = str(table), test_fraction
        self.columns = {
            "file": file_column,
            "label": label_column,
            "split": split_column,
            "group": self.group if self.group is not None and not is_pattern(self.group) else None,
            "weight": weight_column,
        }

    def find(self) -> Source:
        """The images in the table. Raises UserError that names wrong rows by their lines."""
        file, columns, cells = self.read()
        root = self.root
        if isinstance(cells["file"], EmbeddedImages):
            root, cells["file"] = self.unpack(cells)
        assert root is not None
        rows = _Rows(file, columns, cells, self.label_separator, self.label_columns)
        source = rows.source(root, self.address, self.min_classes)
        if self.on_bad == "error" and source.bad:
            raise UserError(f"{source.bad[0].path}: {source.bad[0].reason}. {len(source.bad)} files are missing.")
        if self.group is not None and is_pattern(self.group):
            source = with_groups(source, self.group)
        if "split" in cells or self.test_fraction == 0:
            return source
        train, test = cut(source.train, [1 - self.test_fraction, self.test_fraction], self.seed)
        return Source(source.class_names, train, None, test if len(test) else None, source.bad, source.notes)

    def unpack(self, cells: Mapping[str, Any]) -> tuple[Path, list[str]]:
        """The folder and the files of images that are in the table itself."""
        folder, names, held = unpack_images(cells["file"], self.cache)
        self.opened.held.append(held)
        return folder, names

    def read(self) -> tuple[Path, Columns, dict[str, Any]]:
        """The name of the table, its columns, and the cells of each role."""
        assert self.root is not None
        file = find_table(self.table, self.root)
        chosen: dict[str, str] = {}

        def choose(header: list[str]) -> list[str]:
            if unknown := [name for name in self.label_columns if name not in header]:
                raise UserError(f"data.label_columns: {file} has no {unknown[0]!r}. {nearest(unknown[0], header)}")
            chosen.update(choose_columns(file, header, self.columns, without_label=bool(self.label_columns)))
            return list(dict.fromkeys([*chosen.values(), *self.label_columns]))

        columns = read_columns(file, choose)
        return (
            file,
            columns,
            {role: columns.embedded.get(name) or columns.values[name] for role, name in chosen.items()},
        )


def is_pattern(group: str) -> bool:
    """Whether `data.group` is a regular expression on names, which has parentheses, and not the name of a column."""
    return "(" in group


def choose_columns(
    file: Path, header: Sequence[str], given: Mapping[str, str | None], *, without_label: bool = False
) -> dict[str, str]:
    """The name of the column of each role: the given one, or the only one with a usual name.

    Raises UserError if there is no column for files or labels, or more than one with a usual name.
    """
    chosen = {}
    for role, usual in USUAL_COLUMNS.items():
        if role == "label" and without_label:
            continue
        name = given[role]
        option = "data.group" if role == "group" else f"data.{role}_column"
        if name is not None:
            if name not in header:
                raise UserError(f"{option}={name}: {file} has no such column. {nearest(name, header)}")
            chosen[role] = name
            continue
        found = [name for name in header if re.sub(r"[\s-]+", "_", name.strip().lower()) in usual]
        found = [name for name in found if name not in chosen.values()]
        if found[1:] and role in ("file", "label"):
            raise UserError(f"{file} has {' and '.join(found)}. Choose the column of the {role}s: {option}=NAME.")
        if found:
            chosen[role] = found[0]
        elif role in ("file", "label"):
            raise UserError(
                f"{file} has no column called {', '.join(usual[:3])} or the like, only {', '.join(header[:8])}. "
                f"Choose the column of the {role}s: {option}=NAME."
            )
    return chosen


@dataclass
class _Rows:
    """The rows of a table, and what is wrong with them."""

    file: Path
    columns: Columns
    cells: dict[str, list[Any]]
    """The cells of each role."""
    separator: str | None = None
    label_columns: Sequence[str] = ()
    wrong: list[tuple[int, str]] = field(default_factory=list)
    """Rows that cannot be used, and why."""

    def source(self, root: Path, address: str | None, min_classes: int) -> Source:
        """The images of all rows, in their order. Raises UserError if a row is wrong, or there is none."""
        if not len(self.cells["file"]):
            raise UserError(f"{self.file} has no rows below the names of its columns.")
        names = self._names(address)
        class_names, labels = self._labels()
        splits, weights = self._splits(), self._weights()
        keep, repeated = self._first_of_each(names, labels, splits)
        if self.wrong:
            raise UserError(self._complaint())
        if len(class_names) < (min_classes if labels.ndim == 1 else 1):
            raise UserError(f"{self.file} has only one label, {class_names[0]!r}; a classifier needs at least two.")
        notes = [f"{repeated:,} rows of {self.file.name} repeat an earlier row."] if repeated else []
        groups = self._groups(names)
        keep, bad = self._existing(keep, names, root)
        everything = Split(
            tuple(picture_name(names[row]) for row in keep),
            labels[keep],
            FilesIn(root, [names[row] for row in keep]),
            groups=tuple(groups[row] for row in keep) if groups is not None else None,
            weights=weights[keep] if weights is not None else None,
        )
        if "split" not in self.cells:
            self._check_classes(class_names, everything)
            return Source(class_names, everything, bad=bad, notes=tuple(notes))
        places = splits[keep]
        parts = {name: everything.subset(np.flatnonzero(places == place)) for place, name in enumerate(SPLITS)}
        self._check_classes(class_names, parts["train"])
        used = {name: part if len(part) else None for name, part in parts.items() if name != "train"}
        return Source(class_names, parts["train"], bad=bad, notes=tuple(notes), **used)

    def _names(self, address: str | None) -> list[str]:
        """The file of each row, relative to the root, or absolute."""
        names = [name if isinstance(name, str) else str(name) for name in self.cells["file"]]
        for row, name in enumerate(names):
            if "\\" in name or "//" in name or "./" in name:  # of Windows, an address, or not the shortest path
                names[row] = name = self._plain(row, name, address)
            if not name:
                self.wrong.append((row, "no file"))
        return names

    def _plain(self, row: int, name: str, address: str | None) -> str:
        if is_remote(name):
            prefix = f"{(address or '').rstrip('/')}/"
            if address is None or not name.startswith(prefix):
                self.wrong.append((row, f"{name} is not in data.root. Give its folder: data.root=s3://bucket/prefix"))
            return name.removeprefix(prefix)
        return os.path.normpath(name.replace("\\", "/")) if name else name

    def _labels(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The class names, sorted (as numbers if all are), and the label of each row, int64 (N,)."""
        if self.label_columns:
            return self._flags()
        if self.separator is not None or any(_is_list(cell) for cell in self.cells["label"][:LISTS_LOOKED_AT]):
            return self._several()
        cells = [cell if isinstance(cell, str) else str(cell) for cell in self.cells["label"]]
        known = set(cells)
        self.wrong += [(row, "no label") for row, cell in enumerate(cells) if not cell] if "" in known else []
        known.discard("")
        names = sort_names(known)
        places = {name: place for place, name in enumerate(names)} | {"": -1}
        return names, np.fromiter((places[cell] for cell in cells), dtype=np.int64, count=len(cells))

    def _several(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The class names, and the labels uint8 (N, C), of cells with lists, or texts with the separator."""
        parts = [self._parts(row, cell) for row, cell in enumerate(self.cells["label"])]
        names = sort_names({name for labels in parts for name in labels})
        places = {name: place for place, name in enumerate(names)}
        matrix = np.zeros((len(parts), len(names)), dtype=np.uint8)
        for row, labels in enumerate(parts):
            matrix[row, [places[name] for name in labels]] = 1
        return names, matrix

    def _parts(self, row: int, cell: Any) -> list[str]:
        if _is_list(cell):
            try:
                labels = json.loads(cell) if isinstance(cell, str) else cell
                return [str(label).strip() for label in labels]
            except ValueError:
                self.wrong.append((row, f"the label {cell} is not a JSON list"))
                return []
        return [part.strip() for part in str(cell).split(self.separator or "\0") if part.strip()]

    def _flags(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The class names, and the labels uint8 (N, C), of one column of 0 and 1 for each class."""
        matrix = np.zeros((len(self.columns.lines), len(self.label_columns)), dtype=np.uint8)
        for place, name in enumerate(self.label_columns):
            for row, cell in enumerate(self.columns.values[name]):
                value = FLAGS.get(str(cell).strip().lower())
                if value is None:
                    self.wrong.append((row, f"{name} is {cell!r}, not 0 or 1"))
                matrix[row, place] = value or 0
        return tuple(self.label_columns), matrix

    def _splits(self) -> np.ndarray:
        """The place in SPLITS of each row, int64 (N,); 0 without a column of splits."""
        cells = [str(cell) for cell in self.cells.get("split", [])]
        if not cells:
            return np.zeros(len(self.columns.lines), dtype=np.int64)
        places = {cell: _split_of(cell) for cell in set(cells)}
        if -1 in places.values():
            self.wrong += [
                (row, f"the split is {cell!r}, not train, val or test" if cell else "no split")
                for row, cell in enumerate(cells)
                if places[cell] < 0
            ]
        return np.fromiter((places[cell] for cell in cells), dtype=np.int64, count=len(cells))

    def _weights(self) -> np.ndarray | None:
        """The weight of each row, float32 (N,); None without a column of weights."""
        if "weight" not in self.cells:
            return None
        weights = np.ones(len(self.columns.lines), dtype=np.float32)
        for row, cell in enumerate(self.cells["weight"]):
            try:
                weights[row] = float(cell)
            except ValueError:
                weights[row] = -1
            if not 0 <= weights[row] < np.inf:
                self.wrong.append((row, f"the weight is {cell!r}, not a number of at least 0"))
        return weights

    def _groups(self, names: Sequence[str]) -> list[str] | None:
        """The group of each row; a row without one is a group of its own. None without a column of groups."""
        if "group" not in self.cells:
            return None
        return [str(cell) or name for cell, name in zip(self.cells["group"], names, strict=True)]

    def _first_of_each(self, names: Sequence[str], labels: np.ndarray, splits: np.ndarray) -> tuple[list[int], int]:
        """The first row of each file, and how many other rows repeat one; contradicting rows are wrong."""
        if len(set(names)) == len(names):
            return list(range(len(names))), 0
        first: dict[str, int] = {}
        keep = [row for row, name in enumerate(names) if first.setdefault(name, row) == row]
        for row, name in enumerate(names):
            before = first[name]
            if row == before or not name:
                continue
            line = f"{self.columns.unit} {self.columns.lines[before]}"
            if not np.array_equal(labels[row], labels[before]):
                cells = self.cells.get("label") or labels.tolist()
                self.wrong.append((row, f"{name} is {cells[row]!r} here and {cells[before]!r} in {line}"))
            elif splits[row] != splits[before]:
                self.wrong.append(
                    (row, f"{name} is in {SPLITS[splits[row]]} here and in {SPLITS[splits[before]]} in {line}")
                )
        return keep, len(names) - len(keep)

    def _existing(self, keep: list[int], names: Sequence[str], root: Path) -> tuple[list[int], tuple[BadFile, ...]]:
        """The rows of `keep` whose files exist, and the others. Raises UserError if most files do not exist."""
        missing = _missing(keep, names, root, most=2 * len(keep))
        if not missing:
            return keep, ()
        if len(missing) > MISSING_SHARE * len(keep):
            row = min(missing)
            raise UserError(
                f"{len(missing):,} of {len(keep):,} files of {self.file} do not exist in {root.resolve()}, such as "
                f"{names[row]} ({self._line(row)}). Set data.root=DIR to the folder that the paths are relative to."
            )
        bad = [
            BadFile(root / names[row], f"no such file ({self.file.name}, {self._line(row)})") for row in sorted(missing)
        ]
        return [row for row in keep if row not in missing], tuple(bad)

    def _check_classes(self, class_names: Sequence[str], train: Split) -> None:
        """Raise UserError for a class without training images."""
        if not len(train):
            raise UserError(f"{self.file} has no row whose split is train.")
        counts = train.class_counts(len(class_names))
        if lacking := [name for name, count in zip(class_names, counts, strict=True) if not count]:
            more = f" and {len(lacking) - 3} more" if lacking[3:] else ""
            raise UserError(f"{self.file} has no training image of {', '.join(map(repr, lacking[:3]))}{more}.")

    def _line(self, row: int) -> str:
        return f"{self.columns.unit} {self.columns.lines[row]}"

    def _complaint(self) -> str:
        wrong = sorted(dict(reversed(self.wrong)).items())  # of a row with several mistakes, the first
        examples = "; ".join(f"{self._line(row)}: {reason}" for row, reason in wrong[:EXAMPLES])
        rows = "1 row is" if len(wrong) == 1 else f"{len(wrong):,} rows are"
        return f"{self.file}: {rows} wrong ({examples}{'; …' if wrong[EXAMPLES:] else ''}). Correct or remove them."


def _missing(rows: Sequence[int], names: Sequence[str], root: Path, most: int) -> set[int]:
    """Those of `rows` whose file, relative to `root` or absolute, does not exist.

    Folders are listed once, up to `most` entries in all, which is faster than a question for each file; links, and what
    comes after these entries, are asked for.
    """
    listed: dict[str, set[str]] = {}
    missing = set()
    for row in rows:
        name = names[row]
        start = name.rfind("/") + 1
        found = listed.get(name[:start])
        if found is None:
            found = listed[name[:start]] = _list(root / name[:start], most)
            most -= len(found)
        if name[start:] not in found and not os.path.exists(os.path.join(root, name)):  # noqa: PTH110, PTH118 - a million
            missing.add(row)
    return missing


def _list(folder: Path, most: int) -> set[str]:
    """The names of at most `most` entries of `folder` that are no links."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in islice(entries, most) if not entry.is_symlink()}
    except OSError:
        return set()


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list | tuple) or (isinstance(cell, str) and cell.startswith("[") and cell.endswith("]"))


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """`names` sorted, by their values if all are whole numbers.

    >>> sort_names(["10", "9"]), sort_names(["b", "10", "9"])
    (('9', '10'), ('10', '9', 'b'))
    """
    ordered = sorted(names)
    return tuple(sorted(ordered, key=int) if all(re.fullmatch(r"-?\d+", name) for name in ordered) else ordered)


def _split_of(cell: str) -> int:
    """The place in SPLITS that a cell names, in any usual spelling; -1 if none."""
    word = cell.strip().lower()
    return next((place for place, split in enumerate(SPLITS) if word in USUAL_NAMES[split]), -1)
