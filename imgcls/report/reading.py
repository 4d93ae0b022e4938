"""A run folder's files as a report takes them, and which of its pictures are shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

Rows = list[dict[str, str]]
SHOWN_PICTURES = 24


def read_table(file: Path) -> Rows:
    """The rows of a CSV file; none where there is no file."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def read_json(file: Path) -> Any:
    """The content of a JSON file; an empty dictionary where there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def read_history(folder: Path) -> list[dict[str, float]]:
    """The epochs of `metrics.csv`."""
    rows = read_table(folder / "metrics.csv")
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


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
