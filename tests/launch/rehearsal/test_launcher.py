"""The whole way: SDK, moto, the container's scripts, training, results; as `launch=rehearsal` does it."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

import imgcls
from imgcls.errors import UserError
from imgcls.launch.rehearsal.launcher import START, Rehearsal
from imgcls.launch.sagemaker.training_job import METRICS, metric_definitions
from imgcls.runs.reading import read_status
from tests.aws_account import needs_sdk
from tests.launch.rehearsal.test_job import namespaces
from tests.serve.test_label_ways import PLAIN, write
from tests.trainings import DIGITS

pytestmark = [needs_sdk, pytest.mark.skipif(not namespaces(), reason="namespaces are not allowed here")]

NOT_ABOUT_TIME = ("val/", "test/", "train/", "best_epoch", "epochs")


def results(run: imgcls.Run) -> dict[str, Any]:
    return {name: value for name, value in run.metrics.items() if name.startswith(NOT_ABOUT_TIME)}


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a rehearsal works, which must be empty at the end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_an_interrupted_job_has_the_results_of_a_local_run(tmp_path: Path, own_temporary_folder: Path) -> None:
    words = [*DIGITS, "trainer.max_epochs=2", "trainer.limit_train_batches=4", "seed=3"]
    local = imgcls.fit(imgcls.compose([*words, "report=false", f"run_dir={tmp_path / 'local'}"]))
    cfg = imgcls.compose([*words, f"run_dir={tmp_path / 'job'}", "launch=rehearsal", "launch.interrupt=true"])
    job = imgcls.fit(cfg, words)
    assert results(job) == results(local)
    assert job.status["state"] == "finished"
    assert job.status["resumed"] == 1, "the second container went on from the checkpoints of the first"
    assert (job.folder / "job.log").read_text().count("the checkpoint has been written") == 1
    assert job.report_file.is_file()
    kept = [sorted(path.name for path in (run.folder / "checkpoints").glob("*.ckpt")) for run in (local, job)]
    assert kept[0] == kept[1] != [], "they come from where the job kept them: the archive of its results has none"
    assert job.config == cfg, "with the paths and the launcher of this machine"
    assert [row["epoch"] for row in job.history] == [1, 2]
    assert "interrupted; waiting for another instance" in (job.folder / "launch.log").read_text()
    assert job.model.class_names == local.model.class_names
    assert json.loads((job.folder / "job.json").read_text())["where"] == "rehearsal"
    assert not list(own_temporary_folder.glob(f"{START}*"))
    lines = (job.folder / "job.log").read_text()
    for definition in metric_definitions(METRICS):
        read = [float(value) for value in re.findall(definition["Regex"], lines)]
        assert read == [float(f"{row[definition['Name']]:.6g}") for row in job.history], definition
    assert imgcls.fit(cfg).status["resumed"] == 1, "a finished run is returned as it is"


def test_a_job_that_ends_with_its_rehearsal_is_not_said_to_be_billed() -> None:
    assert Rehearsal().last_words("imgcls-x-1", {}) == "The job imgcls-x-1 ended with the rehearsal."


def test_a_cross_validation_of_images_with_several_labels(tmp_path: Path) -> None:
    table = write(tmp_path / "pictures", 40) / "labels.csv"
    words = [*PLAIN, f"data={table}", "data.label_separator=|", "trainer.max_epochs=1", "debug=off"]
    words += ["cv.folds=2", "cv.ensemble=true"]
    local = imgcls.fit(imgcls.compose([*words, f"run_dir={tmp_path / 'local'}"]))
    job = imgcls.fit(imgcls.compose([*words, f"run_dir={tmp_path / 'job'}", "launch=rehearsal"]))
    assert results(job) == results(local)
    assert (job.folder / "out_of_fold.csv").read_text() == (local.folder / "out_of_fold.csv").read_text()
    assert job.model.thresholds == local.model.thresholds


def test_two_hosts_train_together(tmp_path: Path) -> None:
    words = ["trainer.max_epochs=1", "trainer.limit_train_batches=4", "report=false", f"run_dir={tmp_path / 'job'}"]
    job = imgcls.fit(imgcls.compose([*DIGITS, *words, "launch=rehearsal", "launch.instance_count=2"]))
    lines = (job.folder / "job.log").read_text().splitlines()
    assert {line.split(" | ")[0] for line in lines} == {"algo-1", "algo-2"}
    assert len([line for line in lines if "imgcls epoch=1 " in line]) == 1
    assert "(2 processes)" in (job.folder / "log.txt").read_text()
    assert len(job.predictions) == 359


def test_a_failure_says_what_the_container_said(tmp_path: Path, own_temporary_folder: Path) -> None:
    (tmp_path / "more.txt").write_text("a-package-that-is-nowhere==9.9 --no-index\n")
    words = [f"run_dir={tmp_path / 'job'}", f"launch.requirements={tmp_path / 'more.txt'}"]
    with pytest.raises(UserError, match=r"The job imgcls-\S+ failed: The packages could not be installed") as raised:
        imgcls.fit(imgcls.compose([*DIGITS, "launch=rehearsal", *words]))
    assert len(str(raised.value).splitlines()) == 2
    status = read_status(tmp_path / "job")
    assert status["state"] == "failed"
    assert "could not be installed" in status["reason"]
    assert not list(own_temporary_folder.glob(f"{START}*"))
