"""Which classes are taken for which."""

from __future__ import annotations

import numpy as np

from imgcls.report import figures
from imgcls.report.blocks import Block, Blocks, Matrix, Table, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section
from imgcls.runs.confusion import Confusion, read_confusion
from imgcls.system.files import atomic_write_bytes

MAX_ROWS = 20  # of the table of errors
MAX_DRAWN_CLASSES = 250  # of a confusion matrix that is drawn whole
WORST_CLASSES = 150  # that are drawn of a larger one


def _make(run: RunData) -> Blocks:
    names = run.classes
    if not names:
        return []
    if run.multilabel:
        return _mistaken_labels(run)
    confusion = read_confusion(run.folder, names)
    pairs = _most_confused(confusion)
    blocks: list[Block] = [] if pairs else [Text("Every test image was classified correctly.")]
    if len(names) > MAX_DRAWN_CLASSES:
        wrong, count = confusion.errors(), len(names)
        errors = sum(np.bincount(part, wrong.images, count) for part in (wrong.true, wrong.predicted))
        worst = np.sort(np.argsort(-errors, kind="stable")[:WORST_CLASSES])
        counts, names = confusion.dense(worst), [names[index] for index in worst]
        blocks = [Text(f"The matrix shows the {WORST_CLASSES} classes with the most errors.")]
    else:
        counts = confusion.dense()
    small = len(names) <= figures.MAX_CLASSES
    image = figures.confusion_matrix(counts, names).as_png() if small else figures.confusion_pixels(counts)
    atomic_write_bytes(run.folder / "figures" / "confusion.png", image)
    cells = [[int(row), int(column), int(counts[row, column])] for row, column in zip(*np.nonzero(counts), strict=True)]
    table = Table(["true", "predicted", "images"], pairs, [2], title="Most confused classes", file="confused")
    return [*blocks, Matrix(names, cells, "misclassified-images" if pairs else ""), table]


def _mistaken_labels(run: RunData) -> Blocks:
    cells = [list(row.values()) for row in run.table("label_errors.csv")[:MAX_ROWS]]
    text = "Labels that images lack, and those that they were given instead." if cells else "No label was mistaken."
    return [Text(text), Table(["missed", "given instead", "images"], cells, [2])]


def _most_confused(confusion: Confusion) -> list[list[str]]:
    wrong, names = confusion.errors(), confusion.names
    order = np.argsort(-wrong.images, kind="stable")[:MAX_ROWS]
    return [[names[wrong.true[at]], names[wrong.predicted[at]], str(wrong.images[at])] for at in order]


SECTION = Section("Confusion matrix", _make)
