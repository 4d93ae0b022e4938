"""Follows a job: its status, its log, and its outcome."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

from imgcls.aws.account import Account
from imgcls.aws.refusals import CREDENTIALS, SIGN_IN_ERRORS, error_code, explain, explain_refusals
from imgcls.errors import UserError
from imgcls.launch.sagemaker.container import START_LINE
from imgcls.system.interrupts import Interrupted, raise_if_requested

log = logging.getLogger(__name__)

T = TypeVar("T")
SCRIPT_LINE = "Starting training script"  # the first line of the SDK's script, before its own output
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
PATIENCE_SECONDS = 1800.0  # without a response of AWS until following ends; the job continues
CREDENTIALS_PATIENCE_SECONDS = 12 * 3600.0  # to sign in again
LAST_LINES = 20
RUNNING = ("InProgress", "Stopping")
STEPS = {
    "Starting": "waiting for an instance",
    "Pending": "waiting for an instance",
    "LaunchingMLInstances": "waiting for an instance",
    "PreparingTrainingStack": "preparing the instance",
    "Downloading": "downloading the data",
    "DownloadingTrainingImage": "downloading the container image",
    "Training": "training",
    "Interrupted": "interrupted; waiting for another instance",
    "Uploading": "uploading the results",
    "Stopping": "stopping",
}


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: str
    """Completed, Failed or Stopped."""
    reason: str
    description: dict[str, Any] = field(repr=False, default_factory=dict)


def describe(account: Account, job: str) -> dict[str, Any]:
    """AWS's description of the training job. Raises UserError."""
    with explain_refusals(f"describe the job {job}"):
        answer: dict[str, Any] = account.client("sagemaker").describe_training_job(TrainingJobName=job)
    return answer


def is_running(description: dict[str, Any]) -> bool:
    """Whether the job is running, and billed."""
    return description["TrainingJobStatus"] in RUNNING


def outcome(description: dict[str, Any]) -> Outcome:
    """How the job with this `description` ended."""
    state, detail = description["TrainingJobStatus"], description.get("SecondaryStatus", "")
    reason = str(description.get("FailureReason") or "")
    if detail == "MaxRuntimeExceeded":
        reason = "it reached launch.max_runtime"
    elif detail == "MaxWaitTimeExceeded":
        reason = "no spot instance was available within launch.max_wait"
    return Outcome(state, clean_reason(reason), description)


def clean_reason(reason: str) -> str:
    """AWS's reason without its wrapping: AlgorithmError: …, exit code: 2."""
    match = re.fullmatch(r"(?s)(?:Algorithm|Client)Error: (.*?)(?:, exit code: \d+)?", reason.strip())
    return (match[1] if match else reason).strip()


def say(line: str) -> None:
    """Print a line of the job's log."""
    print(line, flush=True)


class Follower:
    """Reports the status and log of a job.

    Args:
        log_file: receives all lines of the log.
        say: receives the lines of imgcls.
        describe_rest: as `last_words`.
    """

    def __init__(
        self, account: Account, job: str, log_file: Path, say: Callable[[str], None], describe_rest: LastWords
    ) -> None:
        self.account, self.job, self.log_file, self.say = account, job, log_file, say
        self._describe_rest = describe_rest
        self._reader: LogReader | None = None
        self._step = ""
        self._transitions = 0  # that have been reported
        self._description: dict[str, Any] = {}
        self._log_works = True

    @property
    def last_words(self) -> str:
        """What the user must know if following ends before the job does."""
        return self._describe_rest(self.job, self._description)

    def poll(self) -> Outcome | None:
        """Report what is new. Returns None while the job runs. Raises UserError if AWS does not respond."""
        self._description = description = describe(self.account, self.job)
        if self._reader is None:
            multi_host = description["ResourceConfig"]["InstanceCount"] > 1
            self._reader = LogReader(self.account, self.job, self.log_file, multi_host, self.say)
        self._read_log()
        self._report_steps()
        if is_running(description):
            return None
        self._read_log()
        end = outcome(description)
        if end.state != "Completed" and not self._reader.started:
            for line in self._reader.last:
                self.say(line)
        return end

    def _report_steps(self) -> None:
        """Report all steps since the last poll, also those that ended before this one."""
        transitions = self._description.get("SecondaryStatusTransitions") or []
        statuses = [transition["Status"] for transition in transitions[self._transitions :]]
        self._transitions = len(transitions)
        for status in statuses if transitions else [self._description.get("SecondaryStatus", "")]:
            step = STEPS.get(status, "")
            if step and step != self._step:
                self._step = step
                log.info("%s: %s.", self.job, step)

    def _read_log(self) -> None:
        """Read the log, without which a job can be followed too."""
        assert self._reader is not None
        try:
            self._reader.read()
        except UserError as error:
            if is_transient(error) or is_expired(error):
                raise
            if self._log_works:
                log.warning("%s Following the job without its log.", error)
            self._log_works = False


LastWords = Callable[[str, dict[str, Any]], str]
"""What becomes of a job, or tuning job, that is not followed any more, given its name and what is known of it."""


def last_words(job: str, description: dict[str, Any]) -> str:
    """That the job, or tuning job, continues and is billed, until when at most, and how to follow or stop it."""
    until = latest_end(description)
    limit = f" until {until:%Y-%m-%d %H:%M} at most" if until is not None else ""
    return (
        f"The job {job} is not affected: it continues and is billed{limit}.\n"
        f"  To follow it again: python -m imgcls.jobs attach job={job}\n"
        f"  To stop it: python -m imgcls.jobs stop job={job}"
    )


@contextlib.contextmanager
def say_if_interrupted(words: Callable[[], str]) -> Iterator[None]:
    """Log `words`, what the user must know, if a signal ends the waiting for AWS."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        log.warning("%s", words())
        raise


@contextlib.contextmanager
def warn_if_created(what: str, advice: str) -> Iterator[None]:
    """Say of an error or signal after which AWS may have created `what` that it is billed then, and what to do."""
    words = f"If {what} was created nevertheless, it is billed: {advice}"
    try:
        with say_if_interrupted(lambda: words):
            yield
    except UserError as error:
        if not is_transient(error):
            raise
        raise UserError(f"{error}\n{words}") from error.__cause__


def latest_end(description: dict[str, Any]) -> datetime | None:
    """When SageMaker stops a training job at the latest; None if that is unknown."""
    limits = description.get("StoppingCondition") or {}
    began, seconds = description.get("TrainingStartTime"), limits.get("MaxRuntimeInSeconds")
    if began is None:
        began, seconds = description.get("CreationTime"), limits.get("MaxWaitTimeInSeconds", seconds)
    if not isinstance(began, datetime) or seconds is None:
        return None
    return (began + timedelta(seconds=int(seconds))).astimezone()


def follow(
    account: Account,
    job: str,
    log_file: Path,
    *,
    poll: float,
    wait: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = say,
    describe_rest: LastWords = last_words,
) -> Outcome:
    """Report what the job does until it ends, as `Follower`; `wait` is called with `poll`, in seconds.

    Rides out network errors, and waits for credentials that can be renewed. Raises UserError if AWS does not respond
    for half an hour. Whatever ends it before the job does, its last words are those of `describe_rest`.
    """
    watched = Follower(account, job, log_file, say, describe_rest)
    follower = RetryingPoll(watched.poll, account, lambda: watched.last_words)
    with say_if_interrupted(lambda: watched.last_words):
        while (end := follower()) is None:
            wait(poll)
    return end


class RetryingPoll(Generic[T]):
    """Calls `poll`, which asks AWS; returns None on network errors, for up to half an hour in a row.

    Args:
        poll: returns None until there is a result.
        account: whose credentials are renewed if they expire and can be.
        last_words: what is added to the error that ends it.
    """

    def __init__(self, poll: Callable[[], T | None], account: Account, last_words: Callable[[], str]) -> None:
        self._poll, self._account, self._last_words = poll, account, last_words
        self._answered = time.monotonic()
        self._expired = False

    def __call__(self) -> T | None:
        raise_if_requested()
        try:
            answer = self._poll()
        except UserError as error:
            silent = time.monotonic() - self._answered
            if (
                is_expired(error)
                and getattr(self._account, "can_renew", False)
                and silent <= CREDENTIALS_PATIENCE_SECONDS
            ):
                if not self._expired:
                    log.warning("%s Waiting until you have signed in again; the job is not affected.", error)
                self._expired = True
                self._account.renew()
                return None
            if not is_transient(error) or silent > PATIENCE_SECONDS:
                raise UserError(f"{error}\n{self._last_words()}") from error
            log.warning("%s Trying again; the job is not affected.", error)
            return None
        except Interrupted:
            raise
        except Exception:
            log.error("%s", self._last_words())
            raise
        self._answered, self._expired = time.monotonic(), False
        return answer


def is_expired(error: UserError) -> bool:
    """Whether AWS refuses the credentials, which another sign-in may change."""
    cause = error.__cause__
    return error_code(cause) in CREDENTIALS or type(cause).__name__ in SIGN_IN_ERRORS


def is_transient(error: UserError) -> bool:
    """Whether another attempt may succeed after `error`."""
    cause = error.__cause__
    return type(cause).__name__ in (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "HTTPClientError",
    ) or error_code(cause) in ("ThrottlingException", "Throttling", "InternalFailure", "ServiceUnavailable")


class LogReader:
    """Reads new lines of a job's log streams; with several hosts they begin with the host's name."""

    def __init__(
        self, account: Account, job: str, file: Path, multi_host: bool, say: Callable[[str], None] = say
    ) -> None:
        self.account, self.job, self.file, self.multi_host, self.say = account, job, file, multi_host, say
        self.tokens: dict[str, str] = {}
        self.started: set[str] = set()
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.file.write_text("")

    def read(self) -> None:
        """Read what is new, from the hosts that have written already. Raises UserError."""
        client = self.account.client("logs")
        try:
            streams = client.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self.job}/")
        except Exception as error:
            if error_code(error) == "ResourceNotFoundException":
                return  # no job of this account has written a log yet
            raise explain(error, f"read the log of {self.job}") or error from error
        with explain_refusals(f"read the log of {self.job}"), self.file.open("a", encoding="utf-8") as file:
            names = sorted(stream["logStreamName"] for stream in streams["logStreams"])
            for name in names:
                for line in self._new(client, name):
                    labelled = f"{_host(name)} | {line}" if self.multi_host else line
                    file.write(labelled + "\n")
                    self.last.append(labelled)
                    if line.startswith(SCRIPT_LINE):  # once more after each interruption of a spot job
                        self.started.discard(name)
                    elif line.startswith(START_LINE):
                        self.started.add(name)
                    elif name in self.started:
                        self.say(labelled)

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
