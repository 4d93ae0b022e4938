"""The files of a run, each read once for all sections of its report."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.portable.calibration import Judgement, judge
from imgcls.runs.folds import Spread, read_summary
from imgcls.runs.provenance import read_configuration
from imgcls.runs.reading import (
    Rows,
    class_names,
    read_history,
    read_json,
    read_metrics,
    read_outputs,
    read_predictions,
    read_status,
    read_table,
)


class RunData:
    """What the sections of a report read of the run in `folder`; a value is empty where the run has no such file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.most_errors: int | None = None
        """The most misclassified images that are drawn; None: all that are stored."""

    def table(self, name: str) -> Rows:
        """The rows of a CSV file of the run folder."""
        return read_table(self.folder / name)

    def json(self, name: str) -> Any:
        """The content of a JSON file of the run folder."""
        return read_json(self.folder / name)

    def image_data(self, name: str) -> Any:
        """What `report_data.gather` stored under `name`."""
        return self.json(f"report_data/{name}.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration."""
        return read_configuration(self.folder)

    @cached_property
    def status(self) -> dict[str, Any]:
        """The content of `status.json`."""
        return read_status(self.folder)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The final metrics."""
        return read_metrics(self.folder)

    @cached_property
    def folds(self) -> list[Spread]:
        """The metrics over the folds of a cross-validation."""
        return read_summary(self.folder)

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """The metrics of each epoch."""
        return read_history(self.folder)

    @cached_property
    def classes(self) -> list[str]:
        """The classes of the test, in the order of the logits."""
        return class_names(self.folder)

    @cached_property
    def predictions(self) -> Rows:
        """A row per test image."""
        return read_predictions(self.folder)

    @cached_property
    def test_outputs(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Logits, float32 (N, C), and labels, int64 (N,), of the test images; None if they are not stored."""
        return read_outputs(self.folder, "test")

    @property
    def multilabel(self) -> bool:
        """Whether an image has any number of labels."""
        return (self.folder / "label_errors.csv").is_file()

    @cached_property
    def calibration(self) -> dict[str, Any]:
        """`calibration` of `model.json`; empty where the model was exported without."""
        calibration: dict[str, Any] = self.json("model/model.json").get("calibration") or {}
        return calibration

    @cached_property
    def neighbours(self) -> dict[str, list[dict[str, str]]]:
        """Of misclassified images by file: the most similar training images, each `image` and `label`."""
        found: dict[str, list[dict[str, str]]] = self.image_data("neighbours").get("pictures", {})
        return found

    @property
    def answers(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Confidence, float (N,), and whether it is right, bool (N,), of the exported model; None without a test."""
        if self.judged is not None:
            return self.judged.confidence, self.judged.correct
        if not self.predictions:
            return None
        confidence, correct = ([float(row[name]) for row in self.predictions] for name in ("confidence", "correct"))
        return np.array(confidence), np.array(correct) > 0

    @cached_property
    def judged(self) -> Judgement | None:
        """How the exported model judges the test images; None without stored outputs, or with several labels."""
        if self.multilabel or self.test_outputs is None or not len(self.test_outputs[1]):
            return None
        return judge(*self.test_outputs, self.calibration.get("temperature", 1.0))
