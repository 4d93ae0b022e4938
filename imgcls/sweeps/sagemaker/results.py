"""Follow a tuning job to its end: a line for each trial, the table, and the run folder of the best trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.costs import describe_bill
from imgcls.errors import UserError
from imgcls.launch.sagemaker.progress import LastWords, RetryingPoll, describe, last_words, say_if_interrupted
from imgcls.launch.sagemaker.record import JobRecord
from imgcls.launch.sagemaker.results import fetch_job, job_file
from imgcls.runs.reading import read_metrics
from imgcls.sweeps import outcome
from imgcls.sweeps.hydra import finish
from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.remote_search import RemoteSearch
from imgcls.sweeps.sagemaker.ranges import Ranges
from imgcls.sweeps.sagemaker.state import Watcher, describe_tuning
from imgcls.sweeps.sagemaker.trial import read_configuration, space_of
from imgcls.system.logs import log_to_file

log = logging.getLogger(__name__)


def bring_search_home(
    account: Account,
    job: str,
    found: RemoteSearch,
    overrides: Sequence[str],
    poll: float,
    describe_rest: LastWords = last_words,
) -> None:
    """Follow the tuning job `job` to its end, and fill the folder of `found` with its results.

    Args:
        account: of the tuning job.
        job: its name.
        found: the search, whose trials are kept up to date.
        overrides: those that all trials share.
        poll: seconds between two requests.
        describe_rest: gives the last words if it ends before the tuning job, see `last_words`.

    Raises UserError where the tuning job failed, or no trial is complete.
    """
    announce = outcome.Announcer(found, overrides)
    watcher = Watcher(account, found, job, Ranges(found.space), announce)
    look = RetryingPoll(watcher.look, account, lambda: describe_rest(job, {}))
    with say_if_interrupted(lambda: describe_rest(job, {})):
        while (end := look()) is None:
            time.sleep(poll)
    status, reason = end["HyperParameterTuningJobStatus"], str(end.get("FailureReason") or "AWS gives no reason")
    if not found.trials:
        raise UserError(f"The tuning job {job} has no trials ({status.lower()}): {reason.splitlines()[0]}")
    if status != "Completed":
        log.warning("%s: %s%s", job, status.lower(), f": {reason}" if status == "Failed" else "")
    _say_bill(account, found)
    outcome.write(found, overrides)
    for best in outcome.best_trials(found)[:1]:
        _fetch(account, found, best.number, poll)
        outcome.write(found, overrides)
    finish(found)
    record = JobRecord.read(found.folder)
    if record is not None:
        record.finished = True
        record.write(found.folder)


def _say_bill(account: Account, found: RemoteSearch) -> None:
    """Log what the trials are billed for together, if AWS says so."""
    try:
        bill = describe_bill([describe(account, trial.user_attrs["job"]) for trial in found.trials])
    except UserError as error:
        log.debug("What the trials are billed for is not known: %s", error)
        return
    if bill is not None:
        log.info("%s", bill)


def attach(account: Account, job: str, folder: Path, *, poll: float) -> None:
    """`bring_search_home` of a tuning job that may have been created on another machine. Raises UserError."""
    description = describe_tuning(account, job)
    if description is None:
        raise UserError(f"There is no tuning job {job} in {account.region}. `python -m imgcls.jobs` lists them.")
    content = job_file(account, job, description["TrainingJobDefinition"])
    folder.mkdir(parents=True, exist_ok=True)
    limits = description["HyperParameterTuningJobConfig"]["ResourceLimits"]
    total = int(limits["MaxNumberOfTrainingJobs"])
    options = SearchOptions(content["objectives"], trials=total, workers=int(limits["MaxParallelTrainingJobs"]))
    found = RemoteSearch(folder.name, options, space_of(content), folder, total)
    with log_to_file(folder / "launch.log"):
        bring_search_home(account, job, found, content["overrides"], poll)


def _fetch(account: Account, found: RemoteSearch, number: int, poll: float) -> None:
    """Fetch the run folder of a complete trial, and note it with the trial."""
    folder = found.folder / str(number)
    trial = next(trial for trial in found.trials if trial.number == number)
    fetch_job(account, trial.user_attrs["job"], folder, poll=poll, say=lambda line: None, read=read_configuration)
    metrics = read_metrics(folder)
    facts: dict[str, Any] = {name: metrics[name] for name in ("epochs", "best_epoch") if name in metrics}
    fetched = replace(trial, user_attrs={**trial.user_attrs, **facts, "folder": str(folder)})
    found.trials = [fetched if trial.number == number else trial for trial in found.trials]
