"""Runs of a sweep as training jobs: moto takes the requests, and the jobs' results are written down here."""

from __future__ import annotations

import csv
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import imgcls
from imgcls.launch.rehearsal.aws import Call
from imgcls.runs.reading import read_status
from tests.aws_account import Jobs, Search, needs_sdk
from tests.outages import FAILURES

pytestmark = needs_sdk

OVERRIDES = ["hydra/launcher=sagemaker", "launch=sagemaker", "launch.image=own/image:1", "launch.role=trainer"]
OVERRIDES += ["launch.poll=0.05", "data=digits", "hydra.sweep.dir=sweep"]


def end_jobs(account: Jobs, failing: int | None = None) -> None:
    """From now on a job ends soon after its creation; the one with the number `failing` fails."""

    def end(request: dict[str, Any], number: int) -> None:
        if number == failing:
            account.finish(request, {}, "Failed")
            account.aws.job(request["TrainingJobName"]).failure_reason = "AlgorithmError: out of luck, exit code: 1"
        else:
            account.finish(request, {"val/accuracy": 0.5 + number / 10})

    def begin(request: dict[str, Any]) -> None:
        Jobs.begin(account, request)
        threading.Timer(0.3, end, (request, len(account.requests) - 1)).start()

    account.aws.run_job = begin


def test_a_failed_run_takes_no_other_down(
    signed_in: Jobs, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end_jobs(signed_in, failing=1)
    overrides = [*OVERRIDES, "hydra.launcher.jobs=2", "optim.lr=0.1,0.01,0.001"]
    assert search(*overrides) == 2
    printed = capsys.readouterr().err
    assert "failed: out of luck" in printed.splitlines()[-2]
    assert "#1 failed (optim.lr=0.01)" in printed
    folder = tmp_path / "sweep"
    states = [read_status(folder / str(number))["state"] for number in range(3)]
    assert states == ["finished", "failed", "finished"]
    assert [imgcls.load(folder / str(number)).config.optim.lr for number in (0, 2)] == [0.1, 0.001]
    assert imgcls.load(folder / "2").metrics["val/accuracy"] == 0.7
    assert len({request["TrainingJobName"] for request in signed_in.requests}) == 3

    end_jobs(signed_in)
    assert search(*overrides) == 0
    assert len(signed_in.requests) == 4, "what had finished was not done again"


def test_above_the_quota_a_run_waits_for_a_running_one(
    signed_in: Jobs, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from botocore.exceptions import ClientError

    session, refused = signed_in.aws.session, list[str]()

    def finish(request: dict[str, Any]) -> None:
        threading.Timer(0.2, signed_in.finish, (request, {"val/accuracy": 0.5})).start()

    def begin(request: dict[str, Any]) -> None:
        Jobs.begin(signed_in, request)
        if refused:  # the first one runs until the second has been refused
            finish(request)

    signed_in.aws.run_job = begin

    def refuse(**_: Any) -> None:
        names = [request["TrainingJobName"] for request in signed_in.requests]
        if any(signed_in.aws.job(name).training_job_status == "InProgress" for name in names):
            if not refused:
                finish(signed_in.requests[0])
            refused.append(names[-1])
            answer = {"Error": {"Code": "ResourceLimitExceeded", "Message": "The limit is 1 Instances"}}
            raise ClientError(answer, "CreateTrainingJob")

    def made(who: str = "person") -> Any:
        one = session(who)
        one.events.register("before-call.sagemaker.CreateTrainingJob", refuse)
        return one

    signed_in.aws.session = made
    assert search(*OVERRIDES, "hydra.launcher.jobs=2", "optim.lr=0.1,0.01") == 0
    assert refused
    states = [read_status(tmp_path / "sweep" / str(number))["state"] for number in range(2)]
    assert states == ["finished", "finished"]
    assert "waits until one of 1 jobs has ended: the quota is used up" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "code"), [("signal", 128 + signal.SIGTERM), ("denied", 2)])
def test_whatever_ends_the_command_each_job_is_said_to_be_billed(
    signed_in: Jobs, search: Search, capsys: pytest.CaptureFixture[str], kind: str, code: int
) -> None:
    followed = set[str]()

    def refuse(call: Call) -> None:
        if call.operation == "DescribeLogStreams":
            followed.add(call.params["logStreamNamePrefix"])
        if call.operation == "DescribeTrainingJob" and len(followed) == 2:
            if kind == "signal":
                signal.raise_signal(signal.SIGTERM)
            raise FAILURES["denied"](call)

    signed_in.aws.refuse = refuse
    assert search(*OVERRIDES, "hydra.launcher.jobs=2", "optim.lr=0.1,0.01") == code
    printed = capsys.readouterr().err
    assert "To be billed: up to 48.0 hours of ml.g4dn.xlarge" in printed
    for number, request in enumerate(signed_in.requests):
        job = request["TrainingJobName"]
        words = rf"(?s)#{number}\b.{{0,200}}The job {job} is not affected: it continues and is billed until 20"
        assert re.search(words, printed), printed
        assert f"imgcls.jobs attach job={job}" in printed


def test_optuna_chooses_the_values_of_jobs(signed_in: Jobs, search: Search, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    end_jobs(signed_in)
    space = ["optim.lr=tag(log,interval(1e-3,1e-1))", "search.trials=2", "search.workers=2"]
    assert search("hydra/sweeper=optuna", *OVERRIDES, *space) == 0
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["state"], row["val/accuracy"]) for row in rows] == [("complete", "0.5"), ("complete", "0.6")]
    config = imgcls.load(tmp_path / "sweep" / "0").config
    assert "search" not in config.callbacks, "a job does not reach the study"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["hydra.launcher.jobs=0", *OVERRIDES], "hydra.launcher.jobs=0: must be a whole number of at least 1"),
        (["hydra/launcher=sagemaker", "data=digits"], "needs launch=sagemaker, or launch=rehearsal"),
        ([*OVERRIDES, "launch.region=us-east-1,eu-west-1"], "the jobs of a sweep share it"),
        (["hydra/sweeper=optuna", *OVERRIDES, "search/pruner=median"], "cannot reach the study"),
        (["hydra/sweeper=optuna", *OVERRIDES, "launch.wait=false"], "needs the results of its trials"),
    ],
)
def test_what_cannot_be_is_reported_before_a_job_is_created(
    signed_in: Jobs, search: Search, capsys: pytest.CaptureFixture[str], overrides: list[str], complaint: str
) -> None:
    space = "optim.lr=interval(0.01,0.1)" if "hydra/sweeper=optuna" in overrides else "optim.lr=0.1,0.01"
    assert search(*overrides, space) == 2
    assert complaint in capsys.readouterr().err
    assert not signed_in.aws.calls
