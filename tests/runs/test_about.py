"""What a model card tells of a run."""

from __future__ import annotations

import json
from pathlib import Path

from imgcls.runs.about import data_name, read_about
from tests.trainings import Fit


def test_a_training_describes_its_data_and_classes_in_the_model(fit: Fit) -> None:
    run = fit("export.license=apache-2.0", "trainer.max_epochs=1")
    described = json.loads((run.folder / "model/model.json").read_text(encoding="utf-8"))
    assert described["license"] == "apache-2.0"
    assert described["data"] == {"name": "pictures", "images": {"train": 65, "val": 7, "test": 24}}
    assert described["start"] == {"name": "test_resnet", "weights": "none"}
    assert [(row["class"], row["images"]) for row in described["per_class"]] == [("cat", 8), ("dog", 8), ("owl", 8)]
    assert all(0 <= row["recall"] <= 1 for row in described["per_class"] if "recall" in row)
    assert "| test | 24 |" in (run.folder / "model/README.md").read_text(encoding="utf-8")


def test_a_folder_without_a_run_says_nothing(tmp_path: Path) -> None:
    assert read_about(tmp_path) == {}


def test_data_is_called_by_its_table_folder_or_class() -> None:
    assert data_name({"data": {"table": "/home/me/labels.csv", "root": "/home/me/photos"}}) == "photos"
    assert data_name({"data": {"table": "birds/labels.csv", "root": None}}) == "birds"
    assert data_name({"data": {"table": "labels.csv"}}) == "labels.csv"
    assert data_name({"data": {"root": "s3://bucket/photos/"}}) == "photos"
    assert data_name({"data": {"_target_": "imgcls.data.digits.Digits", "root": None}}) == "Digits"
