"""Which test pictures a report shows."""

from __future__ import annotations

import numpy as np

from imgcls.runs.reading import Rows

SHOWN_PICTURES = 24


def most_wrong(predictions: Rows) -> Rows:
    """The wrong ones of the largest loss, worst first."""
    wrong = [row for row in predictions if row["correct"] == "0"]
    return sorted(wrong, key=lambda row: -float(row["loss"]))[:SHOWN_PICTURES]


def samples(predictions: Rows) -> Rows:
    """Some of all, evenly spread."""
    if not predictions:
        return []
    places = np.unique(np.linspace(0, len(predictions) - 1, SHOWN_PICTURES // 2).astype(int))
    return [predictions[place] for place in places]
