"""Test images with their true and predicted classes."""

from __future__ import annotations

from imgcls.report.blocks import Blocks, Pictures
from imgcls.report.run_data import RunData
from imgcls.runs.reading import Rows


def pictures(run: RunData, predictions: Rows) -> Blocks:
    """The images of these rows of `predictions.csv`, as far as they were stored."""
    images = run.image_data("pictures")
    shown = [
        {
            "image": images.get(row["file"], ""),
            "file": row["file"],
            "label": row["label"],
            "predicted": row["predicted"],
            "note": f"confidence {float(row['confidence']):.0%}",
        }
        for row in predictions
    ]
    return [Pictures(shown)] if shown else []
