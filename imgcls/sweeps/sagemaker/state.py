"""The state of a tuning job, and its trials as `RemoteTrial`s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.refusals import explain_refusals
from imgcls.launch.sagemaker.progress import RUNNING, clean_reason
from imgcls.sweeps.remote_search import RemoteSearch, RemoteTrial, State
from imgcls.sweeps.sagemaker.ranges import Ranges


def describe_tuning(account: Account, name: str) -> dict[str, Any] | None:
    """AWS's description of the tuning job; None where there is none of this name. Raises UserError."""
    client = account.client("sagemaker")
    with explain_refusals(f"look at the tuning job {name}"):
        try:
            answer: dict[str, Any] = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        except client.exceptions.ResourceNotFound:
            return None
    return answer


def is_running(description: Mapping[str, Any]) -> bool:
    """Whether the tuning job is running, and billed."""
    return description["HyperParameterTuningJobStatus"] in RUNNING


def trials_of(account: Account, name: str, ranges: Ranges) -> list[RemoteTrial]:
    """The trials of a tuning job that have started, in the order of their creation. Raises UserError."""
    pages = account.client("sagemaker").get_paginator("list_training_jobs_for_hyper_parameter_tuning_job")
    with explain_refusals(f"look at the trials of {name}"):
        jobs = [
            job for page in pages.paginate(HyperParameterTuningJobName=name) for job in page["TrainingJobSummaries"]
        ]
    jobs.sort(key=lambda job: (job["CreationTime"], job["TrainingJobName"]))
    return [_trial(number, job, ranges) for number, job in enumerate(jobs)]


def _trial(number: int, summary: Mapping[str, Any], ranges: Ranges) -> RemoteTrial:
    trial = RemoteTrial(
        number,
        State.RUNNING,
        ranges.values(summary["TunedHyperParameters"]),
        user_attrs={"job": summary["TrainingJobName"]},
        datetime_start=summary.get("TrainingStartTime"),
        datetime_complete=summary.get("TrainingEndTime"),
    )
    status, measured = summary["TrainingJobStatus"], summary.get("FinalHyperParameterTuningJobObjectiveMetric")
    reason = clean_reason(str(summary.get("FailureReason") or "")).splitlines()
    if status in RUNNING:
        return replace(trial, datetime_complete=None)
    if status == "Completed" and measured is not None:
        return replace(trial, state=State.COMPLETE, values=[float(measured["Value"])])
    if status == "Stopped":
        value = f" at {measured['MetricName']}={measured['Value']:.6g}" if measured is not None else ""
        return _with(trial, State.PRUNED, f"ended by AWS{value}")
    missing = "it printed no value of the objective" if status == "Completed" else "AWS gives no reason"
    return _with(trial, State.FAIL, next((line for line in reason if line.strip()), missing))


def _with(trial: RemoteTrial, state: State, reason: str) -> RemoteTrial:
    return replace(trial, state=state, user_attrs={**trial.user_attrs, "reason": reason})


class Watcher:
    """Keeps the trials of `found` up to date with the tuning job `job`; `announce` is called after each update."""

    def __init__(
        self, account: Account, found: RemoteSearch, job: str, ranges: Ranges, announce: Callable[[], None]
    ) -> None:
        self.account, self.found, self.job, self.ranges, self.announce = account, found, job, ranges, announce

    def look(self) -> dict[str, Any] | None:
        """Update the trials; return the tuning job's description once it has ended. Raises UserError."""
        description = describe_tuning(self.account, self.job) or {"HyperParameterTuningJobStatus": "Deleted"}
        self.found.trials = trials_of(self.account, self.job, self.ranges)
        self.announce()
        return None if is_running(description) else description
