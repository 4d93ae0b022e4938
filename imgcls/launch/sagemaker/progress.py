"""A job while it runs: its states, its log, and how it ended."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from imgcls.aws.account import Account
from imgcls.aws.refusals import explain, explain_refusals
from imgcls.errors import UserError
from imgcls.launch.sagemaker.container import STARTED
from imgcls.system.interrupts import raise_if_requested

log = logging.getLogger(__name__)

T = TypeVar("T")
BEGINS = "Starting training script"  # the first line of the SDK's own script; what follows is about itself
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
PATIENCE_SECONDS = 1800.0  # without a response of AWS until following ends; the job continues
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


def describe(account: Account, job: str) -> dict[str, Any]:
    """What AWS knows of the training job. Raises UserError."""
    with explain_refusals(f"look at the job {job}"):
        answer: dict[str, Any] = account.client("sagemaker").describe_training_job(TrainingJobName=job)
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


def say(line: str) -> None:
    """Print a line of the job's log."""
    print(line, flush=True)


class Follower:
    """Says what a job does.

    Args:
        account: what is asked.
        job: its name.
        log_file: gets all lines.
        say: gets those of imgcls.
    """

    def __init__(self, account: Account, job: str, log_file: Path, say: Callable[[str], None]) -> None:
        self.account, self.job, self.log_file, self.say = account, job, log_file, say
        self._reader: LogReader | None = None
        self._step = ""

    def look(self) -> Ended | None:
        """Say what is new; how the job ended, or None while it runs. Raises UserError where AWS does not answer."""
        description = describe(self.account, self.job)
        if self._reader is None:
            several = description["ResourceConfig"]["InstanceCount"] > 1
            self._reader = LogReader(self.account, self.job, self.log_file, several, self.say)
        self._reader.read()
        now = STEPS.get(description.get("SecondaryStatus", ""), "")
        if now and now != self._step:
            self._step = now
            log.info("%s: %s.", self.job, now)
        if is_running(description):
            return None
        self._reader.read()
        end = ended(description)
        if end.state != "Completed" and not self._reader.started:
            for line in self._reader.last:
                self.say(line)
        return end


def follow(
    account: Account,
    job: str,
    log_file: Path,
    *,
    poll: float,
    wait: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = say,
) -> Ended:
    """Say what the job does until it has ended.

    Args:
        account: what is asked.
        job: its name.
        log_file: gets all lines.
        poll: seconds between two looks.
        wait: called with `poll`.
        say: gets the lines of imgcls.

    Raises UserError where AWS does not answer for half an hour; passing faults of the network are waited out.
    """
    look = Patient(Follower(account, job, log_file, say).look)
    while (end := look()) is None:
        wait(poll)
    return end


class Patient(Generic[T]):
    """Asks AWS `look` when called; None where a fault of the network passes by, for at most half an hour in a row."""

    def __init__(self, look: Callable[[], T | None]) -> None:
        self._look, self._answered = look, time.monotonic()

    def __call__(self) -> T | None:
        raise_if_requested()
        try:
            found = self._look()
        except UserError as error:
            if not is_transient(error) or time.monotonic() - self._answered > PATIENCE_SECONDS:
                raise
            log.warning("%s The job goes on; trying again.", error)
            return None
        self._answered = time.monotonic()
        return found


def is_transient(error: UserError) -> bool:
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


class LogReader:
    """The lines of a job's log streams, each once; those of several hosts begin with its name."""

    def __init__(self, account: Account, job: str, file: Path, several: bool, say: Callable[[str], None] = say) -> None:
        self.account, self.job, self.file, self.several, self.say = account, job, file, several, say
        self.tokens: dict[str, str] = {}
        self.started: set[str] = set()
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.file.write_text("")

    def read(self) -> None:
        """Take what is new; hosts that have not written yet are left for the next time. Raises UserError."""
        client = self.account.client("logs")
        try:
            streams = client.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self.job}/")
        except Exception as error:
            if _code(error) == "ResourceNotFoundException":
                return  # no job of this account has written a line yet
            raise explain(error, f"read the log of {self.job}") or error from error
        with explain_refusals(f"read the log of {self.job}"), self.file.open("a", encoding="utf-8") as file:
            names = sorted(one["logStreamName"] for one in streams["logStreams"])
            for name in names:
                for line in self._new(client, name):
                    shown = f"{_host(name)} | {line}" if self.several else line
                    file.write(shown + "\n")
                    self.last.append(shown)
                    if line.startswith(BEGINS):  # also again, where a spot machine was taken away
                        self.started.discard(name)
                    elif line.startswith(STARTED):
                        self.started.add(name)
                    elif name in self.started:
                        self.say(shown)

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
