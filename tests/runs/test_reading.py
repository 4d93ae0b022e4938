"""The files of a run folder, read back: by everyone in one way, and nothing where there is no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imgcls.runs import Run
from imgcls.runs.reading import class_names, read_confusion, read_history, read_metrics, read_predictions, read_steps


def test_what_a_run_has_not_written_is_nothing(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []
    assert read_predictions(tmp_path) == []
    assert read_metrics(tmp_path) == {}
    assert read_steps(tmp_path) == {}
    assert class_names(tmp_path) == []


def test_a_run_has_what_its_files_say(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "metrics.csv").write_text("epoch,train/loss,val/loss\n0,2.5,\n1,1.5,nan\n")
    (tmp_path / "metrics.json").write_text('{"test/accuracy": 0.5}')
    (tmp_path / "predictions.csv").write_text('file,label\n"a, b.png",Käfer\n', encoding="utf-8")
    run = Run(tmp_path)
    assert run.history[0] == {"epoch": 0.0, "train/loss": 2.5}  # what was not measured has no value
    assert np.isnan(run.history[1]["val/loss"])
    assert run.metrics == {"test/accuracy": 0.5}
    assert run.predictions == [{"file": "a, b.png", "label": "Käfer"}]


def test_the_confusion_of_the_test(tmp_path: Path) -> None:
    (tmp_path / "confusion.csv").write_text("label,cat,dog\ncat,3,1\ndog,0,2\n")
    assert class_names(tmp_path) == ["cat", "dog"]
    assert read_confusion(tmp_path).tolist() == [[3, 1], [0, 2]]
