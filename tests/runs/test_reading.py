"""The files of a run folder: a value for each file, and an empty one if it is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imgcls.runs import Run
from imgcls.runs.reading import class_names, read_history, read_metrics, read_predictions, read_steps


def test_missing_files_are_empty(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []
    assert read_predictions(tmp_path) == []
    assert read_metrics(tmp_path) == {}
    assert read_steps(tmp_path) == {}
    assert class_names(tmp_path) == []


def test_a_run_has_the_values_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "metrics.csv").write_text("epoch,train/loss,val/loss\n0,2.5,\n1,1.5,nan\n")
    (tmp_path / "metrics.json").write_text('{"test/accuracy": 0.5}')
    (tmp_path / "predictions.csv").write_text('file,label\n"a, b.png",Käfer\n', encoding="utf-8")
    run = Run(tmp_path)
    assert run.history[0] == {"epoch": 0.0, "train/loss": 2.5}  # no value where nothing was measured
    assert np.isnan(run.history[1]["val/loss"])
    assert run.metrics == {"test/accuracy": 0.5}
    assert run.predictions == [{"file": "a, b.png", "label": "Käfer"}]
