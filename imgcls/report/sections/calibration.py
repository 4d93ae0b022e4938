"""The confidence of the exported model on the test images, and what its temperature has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from imgcls.portable.calibration import BINS, NAMES, expected_error, noise_of
from imgcls.report import figures
from imgcls.report.blocks import Blocks, Figure, Table, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section

FEW_IMAGES = 1000
IMAGES_PER_BIN = 20
SPLITS = {"val": "validation", "test": "test"}


def adaptive_bins(count: int) -> int:
    """Number of bins for `count` images, at least 20 in each."""
    return min(BINS, max(1, count // IMAGES_PER_BIN))


def adaptive_error(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """The calibration error over bins of equally many images (Nguyen and O'Connor 2015)."""
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split((confidence - correct)[order], bins)
    return float(sum(abs(part.sum()) for part in parts) / len(order))


def _make(run: RunData) -> Blocks:
    if run.multilabel:
        return []
    if run.judged is None:
        columns = (np.array([float(row[name]) for row in run.predictions]) for name in ("confidence", "correct"))
        return [Figure.of(figures.reliability(*columns), name="calibration")] if run.predictions else []
    stored = run.calibration
    confidence, correct = run.judged.confidence, run.judged.correct.astype(float)
    chart = Figure.of(figures.reliability(confidence, correct), name="calibration")
    error = (
        f"The expected calibration error is {expected_error(confidence, correct):.4f}{_interval(stored)}, on "
        f"{len(correct)} test images. "
        f"A perfectly calibrated model would have {noise_of(confidence):.4f} on as many."
    )
    if len(correct) < FEW_IMAGES:
        bins = adaptive_bins(len(correct))
        error += (
            f" With so few images, {BINS} bins of equal width exaggerate it; over {bins} bins of equally many images "
            f"it is {adaptive_error(confidence, correct, bins):.4f}."
        )
    if run.folds:
        return [Text(f"{error} The models of the folds have temperatures of their own, which it leaves out."), chart]
    if not stored:
        text = (
            f"{error} The model was exported without a temperature: python -m imgcls.export run=DIR fits one on the "
            "validation images."
        )
        return [Text(text), chart]
    temperature = stored["temperature"]
    text = (
        f"{error} The exported model divides its logits by {temperature:.3g}, which was fitted on {stored['images']} "
        f"validation images: the network alone is {'over' if temperature > 1 else 'under'}confident."
        if temperature != 1
        else f"{error} No temperature would improve the confidence on {stored['images']} validation images."
    )
    rows = [
        [SPLITS[split], NAMES[name], f"{before:.4f}", f"{after:.4f}"]
        for split, values in stored["effect"].items()
        for name, (before, after) in values.items()
    ]
    head = ["images", "metric", "network alone", "exported model"]
    return [Text(text), chart, Table(head, rows if temperature != 1 else [], [2, 3])]


def _interval(stored: Mapping[str, Any]) -> str:
    if not stored.get("interval"):
        return ""
    low, high = stored["interval"]
    return f" (95 % interval {low:.4f} to {high:.4f})"


SECTION = Section("Calibration", _make)
