"""The result of each class, the worst first."""

from __future__ import annotations

from imgcls.report.blocks import Blocks, Table
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section
from imgcls.runs.reading import Rows

MAX_OPEN_ROWS = 40  # of a table that is not folded


def _make(run: RunData) -> Blocks:
    rows = run.table("per_class.csv")
    if not rows:
        return []
    if "threshold" in rows[0]:
        return [_labels(rows)]
    rows = sorted(rows, key=lambda row: float(row["accuracy"] or 2))
    cells = [
        [row["class"], row["pictures"], f"{float(row['accuracy']):.2%}" if row["accuracy"] else ""] for row in rows
    ]
    return [Table(["class", "test images", "accuracy"], cells, [1, 2], fold=_fold(rows))]


def _labels(rows: Rows) -> Table:
    """Each label's average precision, and its precision and recall at its threshold; the worst first."""
    rows = sorted(rows, key=lambda row: float(row["average_precision"] or 2))
    names = ("average_precision", "precision", "recall")
    cells = []
    for row in rows:
        shares = [f"{float(row[name]):.2%}" if row[name] else "" for name in names]
        cells.append([row["class"], row["pictures"], *shares, f"{float(row['threshold']):.3f}"])
    head = ["label", "test images", "average precision", "precision", "recall", "threshold"]
    return Table(head, cells, [1, 2, 3, 4, 5], fold=_fold(rows))


def _fold(rows: Rows) -> str:
    return f"All {len(rows)} classes" if len(rows) > MAX_OPEN_ROWS else ""


SECTION = Section("Classes", _make)
