"""What is fetched of a job, against a stand-in for S3."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.launch.sagemaker.outputs import fetch_reports, fetch_traces
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
