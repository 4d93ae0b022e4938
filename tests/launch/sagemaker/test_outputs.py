"""What is fetched of a job, against a stand-in for S3."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.launch.sagemaker.container import CHECKPOINT_LIST
from imgcls.launch.sagemaker.outputs import _fetch_checkpoints, fetch_reports, fetch_traces
from tests.aws.test_s3 import Paged

CHECKPOINTS = "s3://bucket/jobs/base/checkpoints"
DESCRIPTION = {"TrainingJobName": "job", "OutputDataConfig": {"S3OutputPath": "s3://bucket/jobs/"}}


def account(*keys: str) -> Any:
    return SimpleNamespace(client=lambda service: Paged(["jobs/settled"], keys))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_traces_are_the_log_the_metrics_and_the_rules(tmp_path: Path) -> None:
    names = ("log.txt", "metrics.csv", "debug/rules.json", "checkpoints/last.ckpt", "status.json", "x/log.txt")
    fetch_traces(account(*(f"jobs/base/checkpoints/{name}" for name in names)), CHECKPOINTS, tmp_path)
    assert files(tmp_path) == ["debug/rules.json", "log.txt", "metrics.csv"]
    assert (tmp_path / "log.txt").read_text() == "jobs/base/checkpoints/log.txt"


def test_reports_are_pages_and_findings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("profiler/report.html", "profiler/report.json", "profiler/report.ipynb")
    with caplog.at_level("INFO"):
        fetch_reports(account(*(f"jobs/job/rule-output/{name}" for name in names)), DESCRIPTION, tmp_path)
    assert files(tmp_path) == ["profiler/report.html", "profiler/report.json"]
    assert caplog.messages == [f"The profiler's report: {tmp_path / 'profiler' / 'report.html'}"]


def test_what_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with pytest.raises(UserError, match="cannot be a file in a folder"):
        fetch_traces(account("jobs/base/checkpoints/debug/rules/../../../out"), CHECKPOINTS, folder)
    with pytest.raises(UserError, match="cannot be a file in a folder"):
        fetch_reports(account("jobs/job/rule-output/../out.html"), DESCRIPTION, folder)
    assert files(tmp_path) == []


@pytest.mark.parametrize("place", ["", "job/", "job/job/"])  # of a trial, in a place that all share
def test_checkpoints_come_from_where_the_job_kept_them(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [f"jobs/base/checkpoints/{place}checkpoints/{name}.ckpt" for name in ("best", "older")]
    listed = {"checkpoints/best.ckpt": len(keys[0]), "checkpoints/last.ckpt": 7}
    (tmp_path / CHECKPOINT_LIST).write_text(json.dumps(listed))
    _fetch_checkpoints(account(*keys), {**DESCRIPTION, "CheckpointConfig": {"S3Uri": CHECKPOINTS}}, tmp_path)
    assert files(tmp_path) == ["checkpoints/best.ckpt"]
    assert (tmp_path / "checkpoints" / "best.ckpt").read_text() == keys[0]
    assert "checkpoints/last.ckpt is not in" in caplog.text
