"""Which test images a report shows."""

from __future__ import annotations

from imgcls.runs.reading import Rows
from imgcls.system.positions import spread_positions

SHOWN_IMAGES = 24


def misclassified(predictions: Rows) -> Rows:
    """The misclassified images, the largest loss first."""
    wrong = [row for row in predictions if row["correct"] == "0"]
    return sorted(wrong, key=lambda row: -float(row["loss"]))


def top_losses(predictions: Rows) -> Rows:
    """The misclassified images with the largest losses, largest first."""
    return misclassified(predictions)[:SHOWN_IMAGES]


def samples(predictions: Rows) -> Rows:
    """A few of all images, evenly spaced."""
    if not predictions:
        return []
    indices = spread_positions(len(predictions), SHOWN_IMAGES // 2)
    return [predictions[index] for index in indices]
