"""How often each class was predicted for each true one: only the pairs that occur, so that many classes take no C²."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imgcls.system.files import atomic_write_text
from imgcls.system.tables import cell_text, table_as_csv

DENSE_CLASSES = 1000
"""Up to this number of classes the file is the whole matrix, `confusion.csv`; with more, `confusion_pairs.csv`."""
DENSE, PAIRS = "confusion.csv", "confusion_pairs.csv"


@dataclass(frozen=True, eq=False)
class Confusion:
    """The pairs of classes that occur, P of them, ordered by true and then predicted class."""

    names: tuple[str, ...]
    """Of the C classes."""
    true: np.ndarray
    """int64 (P,)."""
    predicted: np.ndarray
    """int64 (P,)."""
    images: np.ndarray
    """int64 (P,), how many, at least 1."""

    @classmethod
    def of(cls, true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Confusion:
        """Count the classes of N images, both int64 (N,)."""
        pairs, images = np.unique(true * len(names) + predicted, return_counts=True)
        return cls(tuple(names), *np.divmod(pairs, len(names)), images.astype(np.int64))

    def dense(self, classes: np.ndarray | None = None) -> np.ndarray:
        """The matrix of `classes`, int64 (K,) ascending, or of all: int64 (K, K), rows are true classes."""
        classes = np.arange(len(self.names)) if classes is None else classes
        matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
        inside = np.isin(self.true, classes) & np.isin(self.predicted, classes)
        rows, columns = (np.searchsorted(classes, part[inside]) for part in (self.true, self.predicted))
        matrix[rows, columns] = self.images[inside]
        return matrix

    def errors(self) -> Confusion:
        """The pairs of different classes."""
        wrong = self.true != self.predicted
        return Confusion(self.names, self.true[wrong], self.predicted[wrong], self.images[wrong])

    def write(self, folder: Path) -> None:
        """Write the matrix or the pairs to the run folder."""
        if len(self.names) <= DENSE_CLASSES:
            matrix = self.dense().tolist()
            table = [["label", *self.names], *([name, *row] for name, row in zip(self.names, matrix, strict=True))]
            atomic_write_text(folder / DENSE, table_as_csv(table))
            return
        columns = zip(self.true.tolist(), self.predicted.tolist(), self.images.tolist(), strict=True)
        rows = ([self.names[true], self.names[predicted], images] for true, predicted, images in columns)
        atomic_write_text(folder / PAIRS, table_as_csv([["label", "predicted", "pictures"], *rows]))


def read_confusion(folder: Path, names: Sequence[str]) -> Confusion:
    """What `Confusion.write` wrote, for the classes `names`."""
    pairs = folder / PAIRS
    with (pairs if pairs.is_file() else folder / DENSE).open(encoding="utf-8", newline="") as text:
        rows = list(csv.reader(text))[1:]
    if not pairs.is_file():
        matrix = np.array([row[1:] for row in rows], dtype=np.int64)
        true, predicted = np.nonzero(matrix)
        return Confusion(tuple(names), true, predicted, matrix[true, predicted])
    places = {name: place for place, name in enumerate(names)}
    true, predicted = (np.array([places[cell_text(row[at])] for row in rows], dtype=np.int64) for at in (0, 1))
    return Confusion(tuple(names), true, predicted, np.array([row[2] for row in rows], dtype=np.int64))
