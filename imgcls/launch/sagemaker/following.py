"""A job while it runs: its states, its log, and how it ended."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.launch.sagemaker.cloud import Cloud
from imgcls.launch.sagemaker.container import STARTED
from imgcls.launch.sagemaker.refusals import explain, refusals_explained

log = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
PATIENCE = 1800.0  # seconds without an answer of AWS after which following ends; the job goes on
LAST_LINES = 20
RUNNING = ("InProgress", "Stopping")
STEPS = {
    "Starting": "waiting for a machine",
    "Pending": "waiting for a machine",
    "LaunchingMLInstances": "waiting for a machine",
    "PreparingTrainingStack": "preparing the machine",
    "Downloading": "fetching the data",
    "DownloadingTrainingImage": "fetching the image",
    "Training": "training",
    "Interrupted": "interrupted; waiting for another machine",
    "Uploading": "keeping the results",
    "Stopping": "stopping",
}


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    state: str
    """Completed, Failed or Stopped."""
    reason: str
    description: dict[str, Any] = field(repr=False, default_factory=dict)


def describe(cloud: Cloud, job: str) -> dict[str, Any]:
    """What AWS knows of the training job. Raises UserError."""
    with refusals_explained(f"look at the job {job}"):
        answer: dict[str, Any] = cloud.client("sagemaker").describe_training_job(TrainingJobName=job)
    return answer


def is_running(description: dict[str, Any]) -> bool:
    """Whether the job goes on, and costs."""
    return description["TrainingJobStatus"] in RUNNING


def ended(description: dict[str, Any]) -> Ended:
    """How the job of `description` ended."""
    state, detail = description["TrainingJobStatus"], description.get("SecondaryStatus", "")
    reason = str(description.get("FailureReason") or "")
    if detail == "MaxRuntimeExceeded":
        reason = "it reached launch.max_runtime"
    elif detail == "MaxWaitTimeExceeded":
        reason = "no spare machine was found within launch.max_wait"
    return Ended(state, clean_reason(reason), description)


def clean_reason(reason: str) -> str:
    """AWS's words without its wrapping: AlgorithmError: …, exit code: 2."""
    match = re.fullmatch(r"(?s)(?:Algorithm|Client)Error: (.*?)(?:, exit code: \d+)?", reason.strip())
    return (match[1] if match else reason).strip()


def follow(cloud: Cloud, job: str, log_file: Path, *, poll: float, wait: Callable[[float], None] = time.sleep) -> Ended:
    """Say what the job does until it has ended.

    Args:
        cloud: the account.
        job: its name.
        log_file: gets all lines; the terminal gets those of imgcls.
        poll: seconds between two looks.
        wait: called with `poll`.

    Raises UserError where AWS does not answer for half an hour; passing faults of the network are waited out.
    """
    reader: LogReader | None = None
    step, answered = "", time.monotonic()
    while True:
        try:
            description = describe(cloud, job)
            if reader is None:
                reader = LogReader(cloud, job, log_file, description["ResourceConfig"]["InstanceCount"] > 1)
            reader.read()
            answered = time.monotonic()
        except UserError as error:
            if not _passes(error) or time.monotonic() - answered > PATIENCE:
                raise
            log.warning("%s The job goes on; trying again.", error)
            wait(poll)
            continue
        now = STEPS.get(description.get("SecondaryStatus", ""), "")
        if now and now != step:
            step = now
            log.info("%s: %s.", job, step)
        if not is_running(description):
            reader.read()
            end = ended(description)
            if end.state != "Completed" and not reader.started:
                for line in reader.last:
                    say(line)
            return end
        wait(poll)


def _passes(error: UserError) -> bool:
    """Whether the cause of `error` may be gone at another try."""
    cause = error.__cause__
    return type(cause).__name__ in (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "HTTPClientError",
    ) or (getattr(cause, "response", None) or {}).get("Error", {}).get("Code") in (
        "ThrottlingException",
        "Throttling",
        "InternalFailure",
        "ServiceUnavailable",
    )


def say(line: str) -> None:
    """Print a line of the job's log."""
    print(line, flush=True)


class LogReader:
    """The lines of a job's log streams, each once; those of several hosts begin with its name."""

    def __init__(self, cloud: Cloud, job: str, file: Path, several: bool) -> None:
        self.cloud, self.job, self.file, self.several = cloud, job, file, several
        self.tokens: dict[str, str] = {}
        self.started: set[str] = set()
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.file.write_text("")

    def read(self) -> None:
        """Take what is new; hosts that have not written yet are left for the next time. Raises UserError."""
        client = self.cloud.client("logs")
        try:
            streams = client.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self.job}/")
        except Exception as error:
            if _code(error) == "ResourceNotFoundException":
                return  # no job of this account has written a line yet
            raise explain(error, f"read the log of {self.job}") or error from error
        with refusals_explained(f"read the log of {self.job}"), self.file.open("a", encoding="utf-8") as file:
            names = sorted(one["logStreamName"] for one in streams["logStreams"])
            for name in names:
                for line in self._new(client, name):
                    shown = f"{_host(name)} | {line}" if self.several else line
                    file.write(shown + "\n")
                    self.last.append(shown)
                    if line.startswith(STARTED):
                        self.started.add(name)
                    elif name in self.started:
                        say(shown)

    def _new(self, client: Any, stream: str) -> list[str]:
        lines: list[str] = []
        while True:
            token = self.tokens.get(stream)
            more = {"nextToken": token} if token is not None else {}
            page = client.get_log_events(logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, **more)
            lines += [event["message"] for event in page["events"]]
            self.tokens[stream] = page["nextForwardToken"]
            if page["nextForwardToken"] == token or not page["events"]:
                return lines


def _host(stream: str) -> str:
    """algo-1 of <job>/algo-1-1723456789."""
    return "-".join(stream.rpartition("/")[2].split("-")[:2])


def _code(error: Exception) -> str:
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))
