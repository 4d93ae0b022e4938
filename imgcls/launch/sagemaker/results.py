"""Follows a job to its end, and downloads its run folder."""

from __future__ import annotations

import json
import logging
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.costs import describe_bill
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import split_uri
from imgcls.errors import UserError
from imgcls.launch.sagemaker.debugger import rule_statuses
from imgcls.launch.sagemaker.outputs import fetch_reports, fetch_results, fetch_traces
from imgcls.launch.sagemaker.progress import LastWords, Outcome, describe, follow, last_words, say
from imgcls.runs.provenance import read_configuration, read_overrides, write_configuration
from imgcls.runs.recording import Recording
from imgcls.system.files import explain_os_errors
from imgcls.system.logs import log_to_file

log = logging.getLogger(__name__)

Configuration = tuple[dict[str, Any], list[str]]
"""A configuration, and the overrides it was composed from."""


def await_results(
    account: Account,
    job: str,
    folder: Path,
    *,
    poll: float,
    say: Callable[[str], None] = say,
    describe_rest: LastWords = last_words,
) -> dict[str, Any]:
    """Follow `job` until it ends, and download its results into `folder`; arguments as for `follow`.

    Returns:
        The fields of the job's own status, and `state`.

    Raises:
        UserError: the job failed or was stopped, with the reason.
    """
    end = follow(account, job, folder / "job.log", poll=poll, say=say, describe_rest=describe_rest)
    return conclude(account, end, folder)


def conclude(account: Account, end: Outcome, folder: Path) -> dict[str, Any]:
    """Download the results of a job that has ended. Returns and raises as `await_results`."""
    job = end.description["TrainingJobName"]
    if (bill := describe_bill([end.description])) is not None:
        log.info("%s", bill)
    for rule, outcome, details in rule_statuses(end.description):
        log.info("SageMaker Debugger, %s: %s. %s", rule, outcome, details)
    if end.state == "Completed":
        try:
            status = fetch_results(account, end.description, folder)
            if "ProfilerConfig" in end.description:
                fetch_reports(account, end.description, folder / "debug" / "sagemaker")
        except UserError as error:
            again = "Its results are in S3: run the same command again to download them."
            raise UserError(f"{error}\nThe job {job} has ended and is not billed any more. {again}") from error
        return {**status, "state": "finished"}
    checkpoints = end.description.get("CheckpointConfig", {}).get("S3Uri")
    if checkpoints:
        fetch_traces(account, checkpoints, folder)
    if end.state == "Stopped":
        raise UserError(
            f"The job {job} was stopped{f': {end.reason}' if end.reason else ''}. "
            "Run the same command again to resume it from its checkpoints."
        )
    lines = [line for line in end.reason.splitlines() if line.strip()]
    reason = lines[0] if lines else "AWS gives no reason"
    raise UserError(f"The job {job} failed: {reason}\nIts log: {folder / 'job.log'}")


def job_configuration(job: Mapping[str, Any], description: Mapping[str, Any]) -> Configuration:
    """The configuration and overrides of a training job, from the content of its job file."""
    return job["config"], job["overrides"]


def fetch_job(
    account: Account,
    job: str,
    folder: Path,
    *,
    poll: float,
    say: Callable[[str], None] = say,
    read: Callable[[Mapping[str, Any], Mapping[str, Any]], Configuration] = job_configuration,
) -> None:
    """`await_results` into a folder that may be new, and write its status.

    Args:
        poll: seconds between two requests.
        say: receives the lines of the job's log.
        read: returns the configuration, from the contents of the job file and the job's description.

    Raises:
        UserError: the job failed, was stopped, or was not created by imgcls.
    """
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").is_file():
        description = describe(account, job)
        write_configuration(folder, *read(job_file(account, job, description), description))
    config, overrides = read_configuration(folder), read_overrides(folder)
    with Recording(folder, config, overrides) as recording, log_to_file(folder / "launch.log"):
        if not recording.finished:
            recording.update(job=job)
            recording.update(**await_results(account, job, folder, poll=poll, say=say))


def job_file(account: Account, job: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the job file in the source that was uploaded for `job`. Raises UserError."""
    from imgcls.launch.sagemaker.bundle import BUNDLE, JOB_FILE, SOURCE

    channels = {channel["ChannelName"]: channel for channel in description.get("InputDataConfig", [])}
    if "code" not in channels:
        raise UserError(f"The job {job} was not created by imgcls.")
    bucket, key = split_uri(channels["code"]["DataSource"]["S3DataSource"]["S3Uri"])
    with tempfile.TemporaryDirectory() as work, explain_refusals(f"download the source of {job}"):
        archive = Path(work) / BUNDLE
        account.client("s3").download_file(bucket, f"{key}{BUNDLE}" if key.endswith("/") else key, str(archive))
        with tarfile.open(archive) as tar:
            name = next(name for name in (JOB_FILE, f"{SOURCE}/{JOB_FILE}") if name in tar.getnames())
            content = tar.extractfile(name)
            assert content is not None
            made: dict[str, Any] = json.load(content)
    return made
