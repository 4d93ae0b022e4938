"""Every misclassified test image, the largest loss first: as an image as far as the page has room, else as a row."""

from __future__ import annotations

from imgcls.report import selection
from imgcls.report.blocks import Blocks, Pictures, Table, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section
from imgcls.report.thumbnails import describe

MAX_ROWS = 1000  # of the table of those without an image
WITHOUT_IMAGES = 24  # that a page of a run without stored images shows


def _make(run: RunData) -> Blocks:
    wrong, images = selection.misclassified(run.predictions), run.image_data("pictures")
    if not wrong:
        return []
    shown = [row for row in wrong if row["file"] in images][: run.most_errors] or wrong[:WITHOUT_IMAGES]
    files = {row["file"] for row in shown}
    rest = [row for row in wrong if row["file"] not in files]
    text = f"{len(wrong)} of {len(run.predictions)} test images, the largest loss first."
    if run.neighbours:
        text += f" The first {len(run.neighbours)}, enlarged, have the most similar training images beside them."
    cells = [[row["file"], row["label"], row["predicted"], f"{float(row['confidence']):.0%}"] for row in rest]
    table = Table(
        ["file", "true", "predicted", "confidence"],
        cells[:MAX_ROWS],
        [3],
        fold=f"{len(rest)} more, without images",
        note=f"… and {len(rest) - MAX_ROWS} more in predictions.csv" if len(rest) > MAX_ROWS else "",
        file="misclassified",
    )
    return [Text(text), Pictures(describe(run, shown), search=True), table]


SECTION = Section("Misclassified images", _make)
