"""AWS fails at each call of each command: a line says what failed, others what is billed, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imgcls.config.composition import compose, plain
from imgcls.errors import UserError
from imgcls.jobs import _main
from imgcls.launch.sagemaker import progress
from imgcls.launch.sagemaker.launcher import SageMaker
from imgcls.runs.recording import Recording
from tests.aws_account import Jobs, Search, needs_sdk
from tests.conftest import write_pictures
from tests.outages import failing, outages, work

pytestmark = needs_sdk
HINTS = {
    "GetRole",
    "GetProducts",
    "ListServiceQuotas",
    "ListAWSDefaultServiceQuotas",
    "DescribeLogStreams",
    "GetLogEvents",
}
"""Calls whose answers a command can do without: a job is followed without its log, too."""
DESCRIBE_SEARCH = "DescribeHyperParameterTuningJob"
WORDS = ["launch=sagemaker", "launch.image=own/image:1", "launch.poll=0.001"]


@pytest.fixture
def jobs(signed_in: Jobs, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Jobs with a log, which have ended at the second look; what is not reachable is not waited for."""
    looks: list[str] = []

    def begin(request: dict[str, Any]) -> None:
        signed_in.begin(request)
        logs.create_log_stream(logGroupName=progress.LOG_GROUP, logStreamName=f"{request['TrainingJobName']}/algo-1-1")

    def is_running(description: dict[str, Any]) -> bool:
        looks.append(description["TrainingJobName"])
        if looks.count(looks[-1]) == 2:
            [request] = [request for request in signed_in.requests if request["TrainingJobName"] == looks[-1]]
            signed_in.finish(request, {"val/accuracy": 0.5})
        return description["TrainingJobStatus"] in progress.RUNNING

    monkeypatch.setattr(progress, "PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(progress, "is_running", is_running)
    monkeypatch.setattr(
        "imgcls.launch.sagemaker.training_job.write_bundle", lambda target, *_, **__: target.write_bytes(b"")
    )
    logs = signed_in.aws.session("role").client("logs")
    logs.create_log_group(logGroupName=progress.LOG_GROUP)
    signed_in.aws.run_job = begin
    return signed_in


def running(account: Jobs, name: str) -> list[str]:
    """The jobs of the name that are billed."""
    names = [request["TrainingJobName"] for request in account.requests]
    return [job for job in names if f"-{name}-" in job and account.aws.job(job).training_job_status == "InProgress"]


def test_a_job_is_launched_followed_and_fetched(jobs: Jobs, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", {"train": 1}, ("cat", "dog"))
    config = plain(compose([*WORDS, "data=imagefolder", f"data.root={pictures}"]))
    options = {name: value for name, value in config["launch"].items() if name != "_target_"}

    def run(name: str) -> None:
        with Recording(tmp_path / name, config, []) as recording:
            SageMaker(**{**options, "name": name}).run(jobs.cloud(), config, [], tmp_path / name, recording)

    for name, _, message in outages(jobs.aws, run, HINTS):
        for job in running(jobs, name):
            assert f"python -m imgcls.jobs stop job={job}" in message
            assert f"python -m imgcls.jobs attach job={job}" in message
            assert "it continues and is billed" in message
        if [request for request in jobs.requests if f"-{name}-" in request["TrainingJobName"]]:
            run(name)  # finds its job and results
            assert sum(f"-{name}-" in request["TrainingJobName"] for request in jobs.requests) == 1, message
            assert (tmp_path / name / "metrics.json").is_file()


def test_a_search_is_created_and_followed(jobs: Jobs, search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    """A tuning job: the trials, too, are billed whatever ends the command."""
    jobs.aws.run_job = lambda request: jobs.finish(request, {"val/accuracy": 0.5})
    words = ["hydra/sweeper=sagemaker", "optim.lr=0.1,0.01", "search.trials=1", "data=digits", "launch.role=trainer"]
    create = "CreateHyperParameterTuningJob"
    places = [("PutObject", 0, "expired"), (create, 0, "network")]
    places += [(DESCRIBE_SEARCH, 0, "expired"), (DESCRIBE_SEARCH, 1, "denied")]
    for number, (operation, after, kind) in enumerate(places):
        command = [*words, *WORDS, f"search.study=s{number}"]
        failing(jobs.aws, operation, kind, after)
        assert search(*command) == 2
        work(jobs.aws)
        said = capsys.readouterr().err
        assert f"({operation})" in said
        assert "Traceback" not in said
        assert ("is billed" in said) == (operation != "PutObject")
        assert ("python -m imgcls.jobs stop job=imgcls-tune-" in said) == (operation != "PutObject")
    assert search(*command) == 0  # attaches to the one that exists
    made = [call.params["HyperParameterTuningJobName"] for call in jobs.aws.calls if call.operation == create]
    assert len(set(made)) == len(made)


def test_jobs_are_listed_stopped_and_cleaned_up(jobs: Jobs, tmp_path: Path) -> None:
    config = plain(compose([*WORDS, "data=digits"]))
    launcher = SageMaker(image="own/image:1", poll=0.001, wait=False, name="n0")
    with Recording(tmp_path / "run", config, []) as recording:
        launcher.run(jobs.cloud(), config, [], tmp_path / "run", recording)
    job = jobs.requests[0]["TrainingJobName"]
    for words in (["list"], ["clean"], ["stop", f"job={job}"]):
        for _, operation, message in outages(jobs.aws, lambda name, words=words: _main(words), HINTS):
            assert (operation != "StopTrainingJob") or "which is billed until it ends" in message
    for words in (["attach", f"run={tmp_path / 'run'}"], ["fetch", f"job={job}", f"to={tmp_path / 'copy'}"]):
        failing(jobs.aws, "DescribeTrainingJob", "denied")
        with pytest.raises(UserError, match="DescribeTrainingJob"):
            _main(words)
        work(jobs.aws)
