"""The metrics of a cross-validation, with a column per fold."""

from __future__ import annotations

from imgcls.report.blocks import Blocks, Table, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section
from imgcls.runs.folds import OUT_OF_FOLD


def _make(run: RunData) -> Blocks:
    found = [spread for spread in run.folds if "/" in spread.name]
    if not found:
        return []
    count = len(found[0].values)
    text = (
        f"Each of {count} models was trained without one part of the images and tested on it. ± is the standard "
        "deviation over the folds. The predictions on this page are those of the model that had not seen the image; "
        f"{OUT_OF_FOLD} has their probabilities."
    )
    rows = [[spread.name, spread.text, *(f"{value:.4f}" for value in spread.values)] for spread in found]
    head = ["metric", "mean ± sd", *(f"fold {number}" for number in range(1, count + 1))]
    return [Text(text), Table(head, rows, list(range(1, count + 2)))]


SECTION = Section("Cross-validation", _make)
