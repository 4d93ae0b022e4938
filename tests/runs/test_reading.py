"""The files of a run folder: a value for each file, and an empty one if it is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imgcls.callbacks.history import History
from imgcls.errors import UserError
from imgcls.runs import Run
from imgcls.runs.reading import class_names, read_history, read_metrics, read_predictions, read_steps


def test_missing_files_are_empty(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []
    assert read_predictions(tmp_path) == []
    assert read_metrics(tmp_path) == {}
    assert read_steps(tmp_path) == {}
    assert class_names(tmp_path) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json is damaged: Expecting property name"):
        read_metrics(tmp_path)


def test_a_run_has_the_values_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "metrics.csv").write_text("epoch,train/loss,val/loss\n1,2.5,\n2,1.5,nan\n")
    (tmp_path / "metrics.json").write_text('{"test/accuracy": 0.5}')
    (tmp_path / "predictions.csv").write_text('file,label\n"a, b.png",Käfer\n', encoding="utf-8")
    run = Run(tmp_path)
    assert run.history[0] == {"epoch": 1.0, "train/loss": 2.5}  # no value where nothing was measured
    assert np.isnan(run.history[1]["val/loss"])
    assert run.metrics == {"test/accuracy": 0.5}
    assert run.predictions == [{"file": "a, b.png", "label": "Käfer"}]


def test_epochs_of_earlier_versions_are_read_as_if_counted_from_one(tmp_path: Path) -> None:
    for folder, first in (("earlier", 0), ("now", 1)):
        (tmp_path / folder).mkdir()
        rows = "".join(f"{first + n},{0.5 + n}\n" for n in range(3))
        (tmp_path / folder / "metrics.csv").write_text(f"epoch,val/accuracy\n{rows}")
        (tmp_path / folder / "metrics.json").write_text(f'{{"best_epoch": {first + 1}}}')
        assert [row["epoch"] for row in read_history(tmp_path / folder)] == [1, 2, 3]
        assert read_metrics(tmp_path / folder) == {"best_epoch": 2}


def test_the_rows_of_a_checkpoint_of_an_earlier_version_go_on_from_one(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.csv")
    history.load_state_dict({"rows": [{"epoch": 0, "step": 4}, {"epoch": 1, "step": 8}]})
    assert history.rows == [{"epoch": 1, "step": 4}, {"epoch": 2, "step": 8}]
    other = History(tmp_path / "metrics.csv")
    other.load_state_dict(history.state_dict())
    assert other.rows == history.rows
