"""The metrics of an epoch as text: the line that other programs parse."""

from __future__ import annotations

from collections.abc import Mapping

Row = dict[str, float | int]


def metric_line(row: Mapping[str, float | int]) -> str:
    """The line of an epoch: `imgcls epoch=3 train/loss=0.41 val/accuracy=0.9312 …`, for SageMaker's metric regexes.

    >>> metric_line({"epoch": 3, "step": 120, "lr": 0.01, "val/accuracy": 0.93125, "seconds": 2.5})
    'imgcls epoch=3 lr=0.01 val/accuracy=0.93125 seconds=2.5'
    """
    shown = {name: value for name, value in row.items() if name != "step"}
    return "imgcls " + " ".join(f"{name}={value:.6g}" for name, value in shown.items())
