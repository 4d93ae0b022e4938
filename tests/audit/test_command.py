"""The audit of a run and of data before a training, from the command line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from imgcls.audit.__main__ import main
from imgcls.errors import UserError
from imgcls.prepare import main as prepare_main
from imgcls.runs.reading import read_json, read_table
from tests.trainings import Fit


def test_a_run_is_audited(
    fit: Fit, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cat among the dogs is found, and the twin of a training image; both are in the table and the report."""
    wrong = pictures / "train" / "dog" / "cat.png"
    shutil.move(pictures / "train" / "cat" / "000.png", wrong)
    shutil.copy(pictures / "train" / "owl" / "001.png", pictures / "train" / "dog" / "twin.png")
    run = fit()
    monkeypatch.setattr(sys, "argv", ["audit", f"run={run.folder}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "train/dog/cat.png: dog, rather cat" in printed
    assert "copies      1 of an earlier image, 1 with another label" in printed
    rows = {row["file"]: row for row in read_table(run.folder / "audit.csv")}
    assert len(rows) == 3 * 24 + 1 + 3 * 8
    assert rows["train/dog/cat.png"]["split"] in ("train", "val")
    assert {row["copy"] for row in rows.values()} == {"", "identical, another label"}
    stored = read_json(run.folder / "report_data" / "audit.json")
    assert stored["wrong"]["pictures"][0]["image"]
    assert "The least likely labels" in run.report_file.read_text()


def test_data_are_audited_before_a_training(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["model.name=test_resnet", "model.pretrained=false", "data.image_size=24", "data.resize=24"]
    words = ["data=imagefolder", f"data.root={pictures}", *options, "audit=true", f"output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["prepare", *words])
    with pytest.raises(SystemExit) as ended:
        prepare_main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "labels      " in printed
    assert str(tmp_path / "out" / "audit.csv") in printed
    assert len(read_table(tmp_path / "out" / "audit.csv")) == 3 * 24 + 3 * 8


def test_images_with_several_labels_are_refused(tmp_path: Path) -> None:
    import torch

    from imgcls.data.table import Table
    from imgcls.models.backbones import create_network
    from imgcls.training.auditing import audit_images
    from tests.conftest import write_pictures

    root = write_pictures(tmp_path / "images", {"train": 4})
    rows = [f"train/{name}/{number:03}.png,{name};x" for name in ("cat", "dog", "owl") for number in range(4)]
    (root / "labels.csv").write_text("\n".join(["file,labels", *rows]) + "\n")
    data = Table(root, table="labels.csv", label_separator=";", image_size=24, resize=24)
    with pytest.raises(UserError, match="one label each"):
        audit_images(data, create_network("test_resnet", 4), torch.device("cpu"))


def test_the_tables_of_audit_and_predict_are_data_sets(
    fit: Fit, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcls.audit.__main__ import audit_run
    from imgcls.data.table import Table
    from imgcls.predict import predict

    monkeypatch.chdir(tmp_path)
    run = fit()
    predict([f"run={run.folder}", "output=answers.csv", "engine=torch", "pictures/test"])
    answered = Table(table="answers.csv", test_fraction=0).source
    assert sum(map(len, answered.splits().values())) == 3 * 8
    assert set(answered.class_names) <= set(run.class_names)
    audit_run(run)
    audited = Table(pictures, table=run.folder / "audit.csv").source
    counts = {name: len(split) for name, split in audited.splits().items()}
    assert counts["train"] + counts["val"] == 3 * 24
    assert counts["test"] == 3 * 8
