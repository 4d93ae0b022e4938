"""Precision by recall of each label, with the threshold that is applied, where images have several labels."""

from __future__ import annotations

import numpy as np

from imgcls.portable.model import sigmoid
from imgcls.report import figures
from imgcls.report.blocks import Blocks, Figure, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section

MAX_CURVES = 12  # of the labels with the lowest average precision


def _make(run: RunData) -> Blocks:
    outputs = run.test_outputs
    if not run.multilabel or outputs is None or outputs[1].ndim != 2:
        return []
    probabilities, labels = sigmoid(outputs[0]), outputs[1]
    rows = [row for row in run.table("per_class.csv") if row["average_precision"]]
    rows = sorted(rows, key=lambda row: float(row["average_precision"]))[:MAX_CURVES]
    charts = []
    for row in rows:
        place = run.classes.index(row["class"])
        curve = precision_recall(probabilities[:, place], labels[:, place])
        applied = probabilities[:, place] >= float(row["threshold"])
        hits, found = float((labels[:, place][applied] > 0).sum()), float(applied.sum())
        point = (hits / float(labels[:, place].sum()), hits / found) if found else None
        charts.append(figures.precision_recall(row["class"], *curve, point, float(row["average_precision"])))
    if not charts:
        return []
    left = len(run.classes) - len(charts)
    text = "Precision by recall of each label over all thresholds, on the test images. The point is the threshold "
    text += "that is applied, which was chosen on the validation images."
    return [
        Text(text + (f" The {left} labels with a higher average precision are left out." if left else "")),
        Figure.of(*charts),
    ]


def precision_recall(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision, float64 (K,), at each of the K different probabilities of N images, the highest first."""
    order = np.argsort(-probabilities, kind="stable")
    values, true = probabilities[order], labels[order] > 0
    ends = np.flatnonzero(np.append(values[:-1] != values[1:], True))  # the last of equal values
    hits = np.cumsum(true)[ends]
    return hits / max(1, true.sum()), hits / (ends + 1)


SECTION = Section("Precision and recall", _make)
