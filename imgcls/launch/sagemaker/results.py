"""A job followed to its end, and its run folder here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.errors import UserError
from imgcls.launch.sagemaker.debugger import rule_statuses
from imgcls.launch.sagemaker.fetching import fetch_reports, fetch_results, fetch_traces
from imgcls.launch.sagemaker.following import follow

if TYPE_CHECKING:
    from imgcls.launch.sagemaker.cloud import Cloud

log = logging.getLogger(__name__)


def await_results(cloud: Cloud, job: str, folder: Path, *, poll: float) -> dict[str, Any]:
    """Say what `job` does until it ends, and fill `folder` with what it leaves.

    Returns:
        What the job's own status says, and `state`.

    Raises:
        UserError: the job failed or was stopped, and why.
    """
    end = follow(cloud, job, folder / "job.log", poll=poll)
    for rule, outcome, details in rule_statuses(end.description):
        log.info("SageMaker Debugger, %s: %s. %s", rule, outcome, details)
    if end.state == "Completed":
        status = fetch_results(cloud, end.description, folder)
        if "ProfilerConfig" in end.description:
            fetch_reports(cloud, end.description, folder / "debug" / "sagemaker")
        return {**status, "state": "finished"}
    checkpoints = end.description.get("CheckpointConfig", {}).get("S3Uri")
    if checkpoints:
        fetch_traces(cloud, checkpoints, folder)
    if end.state == "Stopped":
        raise UserError(
            f"The job {job} was stopped{f': {end.reason}' if end.reason else ''}. "
            "The same command goes on with it from its checkpoints."
        )
    lines = [line for line in end.reason.splitlines() if line.strip()]
    reason = lines[0] if lines else "AWS gives no reason"
    raise UserError(f"The job {job} failed: {reason}\nIts log: {folder / 'job.log'}")


def bring_home(cloud: Cloud, job: str, folder: Path, *, poll: float) -> None:
    """`await_results` into a folder that may be new, with its status written. Raises UserError."""
    from imgcls.files import explain_os_errors
    from imgcls.recording import Recording, logging_to, stored_configuration

    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").is_file():
        _bring_configuration(cloud, job, folder)
    with Recording(folder, stored_configuration(folder)) as recording, logging_to(folder / "launch.log"):
        if not recording.finished:
            recording.update(job=job)
            recording.update(**await_results(cloud, job, folder, poll=poll))


def _bring_configuration(cloud: Cloud, job: str, folder: Path) -> None:
    """The configuration of a job that was made elsewhere, from the source that was uploaded for it."""
    import json
    import tarfile
    import tempfile

    from imgcls.launch.sagemaker.bundle import JOB_FILE
    from imgcls.launch.sagemaker.following import describe
    from imgcls.launch.sagemaker.naming import split_uri
    from imgcls.launch.sagemaker.refusals import refusals_explained
    from imgcls.recording import write_configuration

    channels = {one["ChannelName"]: one for one in describe(cloud, job).get("InputDataConfig", [])}
    if "code" not in channels:
        raise UserError(f"The job {job} was not made by imgcls.")
    bucket, key = split_uri(channels["code"]["DataSource"]["S3DataSource"]["S3Uri"])
    with tempfile.TemporaryDirectory() as work, refusals_explained(f"fetch the source of {job}"):
        archive = Path(work) / "source.tar.gz"
        cloud.client("s3").download_file(bucket, key, str(archive))
        with tarfile.open(archive) as tar:
            content = tar.extractfile(JOB_FILE)
            assert content is not None
            made = json.load(content)
    write_configuration(folder, made["config"], made["overrides"])
