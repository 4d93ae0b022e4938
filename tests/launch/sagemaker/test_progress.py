"""Following a job, against a stand-in for the account."""

from __future__ import annotations

import contextlib
import re
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from imgcls.errors import UserError
from imgcls.launch.sagemaker.container import START_LINE
from imgcls.launch.sagemaker.progress import SCRIPT_LINE, clean_reason, follow
from imgcls.system.interrupts import Interrupted, StopSignals

JOB = "imgcls-x-1"


class Account:
    """An account whose job goes through `states`; an exception among them is raised."""

    class exceptions:  # noqa: N801 - boto3's name
        ResourceNotFoundException = ClientError

    def __init__(self, states: list[Any], lines: dict[str, list[str]] | None = None) -> None:
        self.states, self.lines, self.looks = states, lines or {}, 0

    def client(self, service: str) -> Account:
        return self

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:  # noqa: N803
        state = self.states[min(self.looks, len(self.states) - 1)]
        self.looks += 1
        if isinstance(state, BaseException):
            raise state
        status, secondary, reason = state
        machines = {"InstanceCount": max(1, len(self.lines))}
        known = {"TrainingJobStatus": status, "SecondaryStatus": secondary, "FailureReason": reason}
        return {**known, "ResourceConfig": machines}

    def describe_log_streams(self, **_: Any) -> dict[str, Any]:
        if not self.lines:
            raise ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": "no group"}}, "x")
        return {"logStreams": [{"logStreamName": f"{JOB}/{host}-17234"} for host in self.lines]}

    def get_log_events(self, logStreamName: str, nextToken: str = "0", **_: Any) -> dict[str, Any]:  # noqa: N803
        host = logStreamName.rpartition("/")[2].removesuffix("-17234")
        start = int(nextToken)
        page = self.lines[host][start : start + 2][: self.looks * 2]
        return {"events": [{"message": line} for line in page], "nextForwardToken": str(start + len(page))}


RUNS, DONE = ("InProgress", "Training", ""), ("Completed", "Completed", "")


def test_states_and_lines_are_said_once(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    caplog.set_level("INFO", logger="imgcls")
    lines = ["+ python3 --version", START_LINE, "imgcls epoch=0 val/loss=1", "imgcls epoch=1 val/loss=0.5", "done"]
    waits: list[float] = []
    end = follow(Account([RUNS, RUNS, DONE], {"algo-1": lines}), JOB, tmp_path / "log", poll=3, wait=waits.append)
    assert end.state == "Completed"
    assert capsys.readouterr().out.splitlines() == lines[2:]
    assert (tmp_path / "log").read_text().splitlines() == lines
    assert waits == [3, 3]
    assert caplog.messages.count(f"{JOB}: training.") == 1


def test_a_state_that_lasts_less_than_a_poll_is_reported(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", logger="imgcls")
    passed = ["Starting", "LaunchingMLInstances", "Training", "Interrupted", "Starting", "Training", "Uploading"]
    seen = iter([3, 3, 6, 7])  # of them, by one poll after another

    class Passing(Account):
        def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:  # noqa: N803
            known = passed[: next(seen)]
            states = {"SecondaryStatusTransitions": [{"Status": state} for state in known]}
            return {**super().describe_training_job(TrainingJobName), "SecondaryStatus": known[-1], **states}

    follow(Passing([RUNS, RUNS, RUNS, DONE]), JOB, tmp_path / "log", poll=3, wait=lambda seconds: None)
    waiting, interrupted = "waiting for an instance", "interrupted; waiting for another instance"
    said = [waiting, "training", interrupted, waiting, "training", "uploading the results"]
    assert caplog.messages == [f"{JOB}: {step}." for step in said]


def test_what_a_machine_says_of_itself_is_hidden_again_when_another_takes_over(tmp_path: Path, capsys: Any) -> None:
    lines = [SCRIPT_LINE, "+ env", START_LINE, "one", SCRIPT_LINE, "+ env", START_LINE, "two"]
    follow(
        Account([RUNS, RUNS, RUNS, DONE], {"algo-1": lines}), JOB, tmp_path / "log", poll=3, wait=lambda seconds: None
    )
    assert capsys.readouterr().out.splitlines() == ["one", "two"]
    assert (tmp_path / "log").read_text().splitlines() == lines


def test_several_hosts_are_told_apart(tmp_path: Path, capsys: Any) -> None:
    lines = {"algo-1": [START_LINE, "first"], "algo-2": [START_LINE, "second"]}
    follow(Account([RUNS, DONE], lines), JOB, tmp_path / "log", poll=1, wait=lambda _: None)
    assert capsys.readouterr().out.splitlines() == ["algo-1 | first", "algo-2 | second"]


def test_a_container_that_never_began_shows_its_last_lines(tmp_path: Path, capsys: Any) -> None:
    failed = ("Failed", "Failed", "AlgorithmError: the reason, exit code: 1")
    end = follow(Account([failed], {"algo-1": ["bash: no python"]}), JOB, tmp_path / "log", poll=1)
    assert (end.state, end.reason) == ("Failed", "the reason")
    assert "bash: no python" in capsys.readouterr().out


def test_passing_faults_are_waited_out_and_others_are_not(tmp_path: Path) -> None:
    away = EndpointConnectionError(endpoint_url="https://x")
    slow = ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, "x")
    end = follow(Account([RUNS, away, slow, DONE]), JOB, tmp_path / "log", poll=1, wait=lambda _: None)
    assert end.state == "Completed"
    expired = ClientError({"Error": {"Code": "ExpiredTokenException", "Message": "expired"}}, "x")
    with pytest.raises(UserError, match="Sign in again"):
        follow(Account([RUNS, expired]), JOB, tmp_path / "log", poll=1, wait=lambda _: None)


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "refused"}}, "x")


@pytest.mark.parametrize("operation", ["describe_log_streams", "get_log_events"])
@pytest.mark.parametrize("code", ["AccessDeniedException", "ResourceNotFoundException", "SomethingNew"])
def test_a_log_that_cannot_be_read_does_not_end_it(tmp_path: Path, caplog: Any, operation: str, code: str) -> None:
    account = Account([RUNS, RUNS, RUNS, DONE], {"algo-1": [START_LINE, "hello"]})

    def refuse(**_: Any) -> Any:
        raise refusal(code)

    setattr(account, operation, refuse)
    assert follow(account, JOB, tmp_path / "log", poll=1, wait=lambda _: None).state == "Completed"
    if operation == "get_log_events" or code != "ResourceNotFoundException":
        assert caplog.text.count("Following the job without its log.") == 1


ENDS = [refusal("AccessDeniedException"), refusal("ExpiredToken"), refusal("New"), OSError("the disk is full")]
SIGNALS = [KeyboardInterrupt(), Interrupted(signal.SIGTERM)]


@pytest.mark.parametrize(
    ("error", "while_waiting"),
    [*((error, False) for error in (*ENDS, *SIGNALS)), *((error, True) for error in SIGNALS)],
)
def test_whatever_ends_it_the_job_is_said_to_run_and_be_billed(
    tmp_path: Path, caplog: Any, error: BaseException, while_waiting: bool
) -> None:
    class Dated(Account):
        def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:  # noqa: N803
            began = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
            limits = {"StoppingCondition": {"MaxRuntimeInSeconds": 86400}, "TrainingStartTime": began}
            return {**super().describe_training_job(TrainingJobName), **limits}

    def wait(_: float) -> None:
        if while_waiting:
            raise error

    states = [RUNS, RUNS if while_waiting else error]
    with pytest.raises(UserError if isinstance(error, ClientError) else type(error)) as caught:
        follow(Dated(states), JOB, tmp_path / "log", poll=1, wait=wait)
    said = f"{caught.value}{caplog.text}"
    assert said.count("continues and is billed") == 1
    assert re.search(r"continues and is billed until 2026-11-29 \d\d:00 at most", said)
    assert f"python -m imgcls.jobs attach job={JOB}" in said
    assert f"python -m imgcls.jobs stop job={JOB}" in said


def test_expired_credentials_that_can_be_renewed_are_waited_for(tmp_path: Path, caplog: Any) -> None:
    class Renewable(Account):
        can_renew, renewed = True, 0

        def renew(self) -> None:
            self.renewed += 1

    account = Renewable([RUNS, *[refusal("ExpiredTokenException")] * 3, DONE])
    assert follow(account, JOB, tmp_path / "log", poll=1, wait=lambda _: None).state == "Completed"
    assert account.renewed == 3
    assert caplog.text.count("Waiting until you have signed in again") == 1


@pytest.mark.parametrize(
    ("secondary", "said"),
    [("MaxRuntimeExceeded", r"launch.max_runtime"), ("MaxWaitTimeExceeded", "launch.max_wait"), ("Stopped", "")],
)
def test_why_a_job_was_stopped(secondary: str, said: str, tmp_path: Path) -> None:
    end = follow(Account([("Stopped", secondary, "")]), JOB, tmp_path / "log", poll=1)
    assert end.state == "Stopped"
    assert said in end.reason


def test_reasons_lose_the_wrapping_of_aws() -> None:
    assert (
        clean_reason("AlgorithmError: data.root=x: no such\nfolder., exit code: 2") == "data.root=x: no such\nfolder."
    )
    assert clean_reason("CapacityError: Unable to provision") == "CapacityError: Unable to provision"


def test_a_signal_that_botocore_swallows_is_not_lost(tmp_path: Path) -> None:
    class Swallowing(Account):
        def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:  # noqa: N803
            answer = super().describe_training_job(TrainingJobName)
            with contextlib.suppress(Exception):
                signal.raise_signal(signal.SIGTERM)
            return answer

    with StopSignals(), pytest.raises(Interrupted):
        follow(Swallowing([RUNS]), JOB, tmp_path / "log", poll=1, wait=lambda _: None)
