"""Selective accuracy: what remains, and how much of it is right, when unsure answers are left out."""

from __future__ import annotations

import numpy as np

from imgcls.report import figures
from imgcls.report.blocks import Blocks, Figure, Table, Text
from imgcls.report.intervals import wilson
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
SENTENCE_THRESHOLD, SENTENCE_SHARE = 0.8, 0.9


def _make(run: RunData) -> Blocks:
    answers = run.answers
    if run.multilabel or answers is None:
        return []
    confidence, correct = answers
    finite = np.isfinite(confidence)
    if not finite.all() or not len(confidence):
        return []
    order = np.argsort(-confidence, kind="stable")
    hits = np.cumsum(correct[order])
    count = len(order)
    above = {threshold: int((confidence >= threshold).sum()) for threshold in THRESHOLDS}
    surest = {share: max(1, round(share * count)) for share in SHARES}
    kept, sure = above[SENTENCE_THRESHOLD], surest[SENTENCE_SHARE]
    text = f"Accept the {SENTENCE_SHARE:.0%} surest answers: {_right(hits, sure)}."
    if kept:
        text += f" Keep only answers above {SENTENCE_THRESHOLD:.0%}: {kept / count:.0%} of the images, "
        text += f"{_right(hits, kept)}."
    rows = [
        [f"{threshold:.0%}", str(kept), f"{kept / count:.1%}", *_cells(hits, kept)] for threshold, kept in above.items()
    ]
    lowest = [
        [f"{share:.0%}", f"{confidence[order[kept - 1]]:.1%}", *_cells(hits, kept)] for share, kept in surest.items()
    ]
    chart = figures.risk_coverage(np.arange(1, count + 1) / count, 1 - hits / np.arange(1, count + 1))
    return [
        Text(text),
        Figure.of(chart, name="thresholds"),
        Table(
            ["confidence of at least", "images", "share of the images", "right", "95 % interval"],
            rows,
            range(4),
            file="thresholds",
        ),
        Table(
            ["surest", "lowest confidence", "right", "95 % interval"],
            lowest,
            range(3),
            title="The surest answers",
            file="surest",
        ),
    ]


def _right(hits: np.ndarray, kept: int) -> str:
    return f"{hits[kept - 1] / kept:.1%} right"


def _cells(hits: np.ndarray, kept: int) -> list[str]:
    if not kept:
        return ["", ""]
    low, high = wilson(float(hits[kept - 1]), kept)
    return [f"{hits[kept - 1] / kept:.1%}", f"{low:.1%} to {high:.1%}"]


SECTION = Section("Confidence thresholds", _make)
