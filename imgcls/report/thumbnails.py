"""Test images with their true and predicted classes."""

from __future__ import annotations

from typing import Any

from imgcls.report.run_data import RunData
from imgcls.runs.reading import Rows


def describe(run: RunData, predictions: Rows) -> list[dict[str, Any]]:
    """The images of these rows of `predictions.csv`, as far as they were stored, for a block of pictures."""
    images, neighbours = run.image_data("pictures"), run.neighbours
    return [
        {
            "image": images.get(row["file"], ""),
            "file": row["file"],
            "label": row["label"],
            "predicted": row["predicted"],
            "note": f"confidence {float(row['confidence']):.0%}",
            "near": neighbours.get(row["file"], []),
        }
        for row in predictions
    ]
