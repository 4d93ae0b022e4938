"""Metrics as text: the line of an epoch that other programs parse, and CSV tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, float | int]


def metric_line(row: Mapping[str, float | int]) -> str:
    """The line of an epoch: `imgcls epoch=3 train/loss=0.41 val/accuracy=0.9312 …`, for SageMaker's metric regexes.

    >>> metric_line({"epoch": 3, "step": 120, "lr": 0.01, "val/accuracy": 0.93125, "seconds": 2.5})
    'imgcls epoch=3 lr=0.01 val/accuracy=0.93125 seconds=2.5'
    """
    shown = {name: value for name, value in row.items() if name != "step"}
    return "imgcls " + " ".join(f"{name}={value:.6g}" for name, value in shown.items())


def as_csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """`rows` as CSV text whose header is `names` and every other key that any row has."""
    names = list(dict.fromkeys([*names, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
