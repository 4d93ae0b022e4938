"""The result of each class, the worst first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from imgcls.models.scores import Counts, share
from imgcls.report.blocks import Blocks, Table, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section
from imgcls.runs.confusion import read_confusion
from imgcls.runs.reading import Rows

MAX_OPEN_ROWS = 40  # of a table that is not folded
HEAD = ("class", "test images", "precision", "recall", "F1", "average precision")


def _make(run: RunData) -> Blocks:
    rows = run.table("per_class.csv")
    if not rows:
        return []
    if "threshold" in rows[0]:
        return [_labels(rows)]
    confusion = read_confusion(run.folder, run.classes)
    count, hit = len(run.classes), confusion.true == confusion.predicted
    tp = np.bincount(confusion.true[hit], confusion.images[hit], count)
    support = np.bincount(confusion.true, confusion.images, count)
    counts = Counts(tp, np.bincount(confusion.predicted, confusion.images, count) - tp, support - tp, support.sum())
    columns = {
        "precision": share(counts.tp, counts.tp + counts.fp),
        "recall": share(counts.tp, support),
        "f1": share(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn),
    }
    precisions = [row.get("average_precision", "") for row in rows]
    if any(precisions):
        columns["average_precision"] = np.array([float(value or np.nan) for value in precisions])
    order = np.argsort(np.where(support > 0, columns["f1"], 2), kind="stable")
    cells = [
        [
            run.classes[place],
            str(int(support[place])),
            *(_percent(column[place] if support[place] else np.nan) for column in columns.values()),
        ]
        for place in order
    ]
    total = ["mean of the classes", str(int(support.sum())), *_means(columns, support > 0)]
    head = HEAD[: len(columns) + 2]
    text = (
        "Precision: the share of the images predicted as the class that belong to it. Recall: the share of its images "
        "that are found. F1: their harmonic mean."
    )
    if "average_precision" in columns:
        text += " Average precision: the area under the curve of precision over recall, whatever the threshold."
    return [Text(text, soft=True), Table(head, cells, range(1, len(head)), total, fold=_fold(cells), file="classes")]


def _means(columns: Mapping[str, np.ndarray], present: np.ndarray) -> list[str]:
    known = (column[present & np.isfinite(column)] for column in columns.values())
    return [_percent(column.mean() if len(column) else np.nan) for column in known]


def _percent(value: float) -> str:
    return f"{value:.1%}" if np.isfinite(value) else ""


def _labels(rows: Rows) -> Table:
    """Each label's average precision, and its precision and recall at its threshold; the worst first."""
    rows = sorted(rows, key=lambda row: float(row["average_precision"] or 2))
    names = ("average_precision", "precision", "recall")
    cells = []
    for row in rows:
        shares = [f"{float(row[name]):.2%}" if row[name] else "" for name in names]
        cells.append([row["class"], row["pictures"], *shares, f"{float(row['threshold']):.3f}"])
    head = ["label", "test images", "average precision", "precision", "recall", "threshold"]
    return Table(head, cells, [1, 2, 3, 4, 5], fold=_fold(cells), file="labels")


def _fold(rows: list[list[str]]) -> str:
    return f"All {len(rows)} classes" if len(rows) > MAX_OPEN_ROWS else ""


SECTION = Section("Classes", _make)
