"""A job followed to its end, and its run folder here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.errors import UserError
from imgcls.launch.sagemaker.debugger import rule_statuses
from imgcls.launch.sagemaker.outputs import fetch_reports, fetch_results, fetch_traces
from imgcls.launch.sagemaker.progress import Ended, follow, say

if TYPE_CHECKING:
    from imgcls.aws.account import Account

log = logging.getLogger(__name__)

Configuration = tuple[dict[str, Any], list[str]]
"""A configuration, and the overrides it was composed from."""


def await_results(
    account: Account, job: str, folder: Path, *, poll: float, say: Callable[[str], None] = say
) -> dict[str, Any]:
    """Say what `job` does until it ends, and fill `folder` with what it leaves.

    Returns:
        What the job's own status says, and `state`.

    Raises:
        UserError: the job failed or was stopped, and why.
    """
    return settle(account, follow(account, job, folder / "job.log", poll=poll, say=say), folder)


def settle(account: Account, end: Ended, folder: Path) -> dict[str, Any]:
    """Fill `folder` with what a job left that has ended. Returns and raises as `await_results`."""
    job = end.description["TrainingJobName"]
    for rule, outcome, details in rule_statuses(end.description):
        log.info("SageMaker Debugger, %s: %s. %s", rule, outcome, details)
    if end.state == "Completed":
        status = fetch_results(account, end.description, folder)
        if "ProfilerConfig" in end.description:
            fetch_reports(account, end.description, folder / "debug" / "sagemaker")
        return {**status, "state": "finished"}
    checkpoints = end.description.get("CheckpointConfig", {}).get("S3Uri")
    if checkpoints:
        fetch_traces(account, checkpoints, folder)
    if end.state == "Stopped":
        raise UserError(
            f"The job {job} was stopped{f': {end.reason}' if end.reason else ''}. "
            "The same command goes on with it from its checkpoints."
        )
    lines = [line for line in end.reason.splitlines() if line.strip()]
    reason = lines[0] if lines else "AWS gives no reason"
    raise UserError(f"The job {job} failed: {reason}\nIts log: {folder / 'job.log'}")


def job_configuration(job: Mapping[str, Any], description: Mapping[str, Any]) -> Configuration:
    """The configuration and the overrides of a training job, from the content of its file."""
    return job["config"], job["overrides"]


def bring_home(
    account: Account,
    job: str,
    folder: Path,
    *,
    poll: float,
    say: Callable[[str], None] = say,
    read: Callable[[Mapping[str, Any], Mapping[str, Any]], Configuration] = job_configuration,
) -> None:
    """`await_results` into a folder that may be new, with its status written.

    Args:
        account: what is asked.
        job: its name.
        folder: the run folder.
        poll: seconds between two questions for its state.
        say: what is done with each line of its log.
        read: makes the configuration of the content of the job's file and of the job's description.

    Raises:
        UserError: the job failed or was stopped, or was not made by imgcls.
    """
    from imgcls.runs.provenance import stored_configuration, stored_overrides
    from imgcls.runs.recording import Recording
    from imgcls.system.files import explain_os_errors
    from imgcls.system.logs import logging_to

    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").is_file():
        _bring_configuration(account, job, folder, read)
    config, words = stored_configuration(folder), stored_overrides(folder)
    with Recording(folder, config, words) as recording, logging_to(folder / "launch.log"):
        if not recording.finished:
            recording.update(job=job)
            recording.update(**await_results(account, job, folder, poll=poll, say=say))


def _bring_configuration(
    account: Account, job: str, folder: Path, read: Callable[[Mapping[str, Any], Mapping[str, Any]], Configuration]
) -> None:
    """The configuration of a job that was made elsewhere, from the source that was uploaded for it."""
    from imgcls.launch.sagemaker.progress import describe
    from imgcls.runs.provenance import write_configuration

    description = describe(account, job)
    write_configuration(folder, *read(job_file(account, job, description), description))


def job_file(account: Account, job: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """What the container is told, from the source that was uploaded for `job`. Raises UserError."""
    import json
    import tarfile
    import tempfile

    from imgcls.aws.refusals import explain_refusals
    from imgcls.aws.s3 import split_uri
    from imgcls.launch.sagemaker.bundle import BUNDLE, JOB_FILE, SOURCE

    channels = {one["ChannelName"]: one for one in description.get("InputDataConfig", [])}
    if "code" not in channels:
        raise UserError(f"The job {job} was not made by imgcls.")
    bucket, key = split_uri(channels["code"]["DataSource"]["S3DataSource"]["S3Uri"])
    with tempfile.TemporaryDirectory() as work, explain_refusals(f"fetch the source of {job}"):
        archive = Path(work) / BUNDLE
        account.client("s3").download_file(bucket, f"{key}{BUNDLE}" if key.endswith("/") else key, str(archive))
        with tarfile.open(archive) as tar:
            name = next(name for name in (JOB_FILE, f"{SOURCE}/{JOB_FILE}") if name in tar.getnames())
            content = tar.extractfile(name)
            assert content is not None
            made: dict[str, Any] = json.load(content)
    return made
