"""`hydra/launcher=sagemaker`: each run of a sweep as a training job, several at a time.

One process creates and follows all of them: one loop polls any number of jobs in turn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from imgcls.aws.account import Account
from imgcls.aws.refusals import QUOTA, error_code
from imgcls.config.command_line import overrides_of
from imgcls.config.composition import check, plain
from imgcls.errors import UserError
from imgcls.launch.sagemaker.launcher import SageMaker
from imgcls.launch.sagemaker.options import check_job
from imgcls.launch.sagemaker.progress import Follower, RetryingPoll
from imgcls.launch.sagemaker.results import conclude
from imgcls.runs.recording import Recording
from imgcls.system.checks import check_value, whole
from imgcls.system.interrupts import Interrupted, StopSignals, raise_if_requested
from imgcls.system.logs import log_to_file

log = logging.getLogger(__name__)

SHARED = ("region", "profile", "bucket", "prefix", "role", "kms_key")  # by all jobs of a sweep


def launch(
    context: HydraContext, config: DictConfig, jobs: int, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Train each of `job_overrides` in a separate job, and return what Hydra's launchers return.

    Args:
        context, config: Hydra's, and the composed configuration.
        jobs: the number of training jobs at a time.
        job_overrides: the overrides of each run.
        first: the number of the first run.

    Raises:
        UserError: before a job is created. A run that fails has its error in its JobReturn.
    """
    check_value("hydra.launcher.jobs", jobs, whole(1))
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    shared = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set[str]()
    runs = []
    for number, overrides in enumerate(job_overrides, first):
        differing = [text for text in overrides if text not in shared and not text.startswith("run_dir=")]
        runs.append(_compose_run(context, config, overrides, number, " ".join(differing)))
    launcher = runs[0].launcher
    for run in runs:
        for name in SHARED:
            if getattr(run.launcher, name) != getattr(launcher, name):
                raise UserError(f"launch.{name}: the jobs of a sweep share it. Start a sweep for each.")
    folder = Path(str(config.hydra.sweep.dir))
    folder.mkdir(parents=True, exist_ok=True)
    with log_to_file(folder / "launch.log"), StopSignals(), launcher.account(runs[0].config) as account:
        _say_cost(account, [run for run in runs if not (run.folder / "metrics.json").is_file()])
        _run_all(account, runs, launcher.at_once(jobs), launcher.poll)
    return [run.returned for run in runs]


def create_launcher(config: DictConfig, option: str) -> SageMaker:
    """The launcher of `config.launch`. Raises UserError where it is not SageMaker's, which `option` needs."""
    launcher = instantiate(config.launch, _convert_="all")
    if not isinstance(launcher, SageMaker):
        raise UserError(f"{option} needs launch=sagemaker, or launch=rehearsal to try it here.")
    return launcher


@dataclass
class _Run:
    """A run of the sweep.

    Args:
        number: of the run.
        returned: what Hydra is given.
        cfg: its configuration.
        overrides: of the run.
        title: those that not all runs share.
    """

    number: int
    returned: JobReturn
    cfg: DictConfig
    overrides: list[str]
    title: str
    _open: ExitStack = field(default_factory=ExitStack)
    _follower: Follower | None = None
    _look: RetryingPoll[Any] | None = None
    _recording: Recording | None = None
    job: str | None = None

    def __post_init__(self) -> None:
        self.config = plain(self.cfg)
        self.folder = Path(str(self.cfg.run_dir)).expanduser()
        self.launcher = create_launcher(self.cfg, "hydra/launcher=sagemaker")
        check_job(self.config)

    def begin(self, account: Account) -> bool:
        """Create or find the job; return whether it must be waited for. Raises UserError."""
        recording = Recording(self.folder, self.config, self.overrides, self.cfg.resume)
        self._recording = self._open.enter_context(recording)
        if recording.finished:
            self._end()
            return False
        self.job = self.launcher.current_job(account, self.folder)
        if self.job is None:
            self.job = self.launcher.new_job(account, self.config, self.overrides, self.folder)
        recording.update(job=self.job)
        log.info("#%d: %s (%s)", self.number, self.job, self.title)
        if not self.launcher.wait:
            self._open.close()
            return False
        watched = Follower(
            account, self.job, self.folder / "job.log", lambda line: None, describe_rest=self.launcher.last_words
        )
        self._follower, self._look = watched, RetryingPoll(watched.poll, account, lambda: watched.last_words)
        return True

    def has_ended(self, account: Account) -> bool:
        """Whether the job has ended, with its results fetched. Raises UserError where it failed."""
        assert self._look is not None
        assert self._recording is not None
        if (end := self._look()) is None:
            return False
        self._recording.update(**conclude(account, end, self.folder))
        self._end()
        return True

    @property
    def last_words(self) -> str | None:
        """What becomes of the job when this command ends before it; None: it is not known that there is one."""
        if self._follower is not None:
            return self._follower.last_words
        return self.launcher.last_words(self.job, {}) if self.job is not None else None

    def postpone(self) -> None:
        """Undo `begin`, which the quota of the account refused."""
        self._open.close()
        self._open, self._recording = ExitStack(), None

    def fail(self, error: BaseException) -> None:
        """Record the error that ended the run."""
        if self._recording is not None:
            self._recording.record_failure(error)
        self._open.close()
        self.returned.return_value, self.returned.status = error, JobStatus.FAILED

    def _end(self) -> None:
        from imgcls.runs.run import load

        self._open.close()
        monitor = self.config["checkpoint"]["monitor"]
        self.returned.return_value = value = load(self.folder).metrics.get(monitor)
        result = f"{monitor}={value:.6g}" if value is not None else "finished"
        log.info("#%d: %s (%s)", self.number, result, self.title)


def _compose_run(context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int, title: str) -> _Run:
    """The run of `overrides`, with the folder and the JobReturn of Hydra. Raises UserError for what cannot be right."""
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number

    def create(cfg: DictConfig) -> _Run:
        check(cfg)
        return _Run(number, JobReturn(), cfg, overrides_of(cfg), title)

    returned = run_job(
        hydra_context=context,
        task_function=create,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    run: _Run = returned.return_value  # which raises the error of `create`
    run.returned = returned
    return run


def _say_cost(account: Account, runs: Sequence[_Run]) -> None:
    """Log the most that the jobs of these runs can cost, of each kind of job the sum."""
    launchers = [run.launcher for run in runs]
    for number, launcher in enumerate(launchers):
        if launcher not in launchers[:number]:
            launcher.say_cost(account, launchers.count(launcher))


def _run_all(account: Account, runs: Sequence[_Run], at_once: int, poll: float) -> None:
    waiting, running = list(runs), list[_Run]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                run = waiting.pop(0)
                running.append(run)
                try:
                    begun = _contain_errors(run, run.begin, account, others=len(running) > 1)
                except QuotaReached:
                    running.remove(run)
                    run.postpone()
                    waiting.insert(0, run)
                    log.info(
                        "#%d waits until one of %d jobs has ended: the quota is used up.", run.number, len(running)
                    )
                    break
                if not begun:
                    running.remove(run)
            for run in list(running):
                if _contain_errors(run, run.has_ended, account) is not False:
                    running.remove(run)
            if running:
                time.sleep(poll)
    except (Interrupted, KeyboardInterrupt) as error:
        for run in running:
            run.fail(error)
            if run.last_words is not None:
                log.warning("#%d: %s", run.number, run.last_words)
        raise


class QuotaReached(Exception):  # noqa: N818 - not an error of the run
    """AWS allows no more jobs at the same time."""


def _contain_errors(
    run: _Run, step: Callable[[Account], bool], account: Account, *, others: bool = False
) -> bool | None:
    """The result of `step`; None where the run has failed, so that the others continue.

    Raises QuotaReached where the account's quota is used up, and `others` run whose end makes room.
    """
    try:
        return step(account)
    except Interrupted:
        raise
    except Exception as error:
        raise_if_requested()
        if others and error_code(error.__cause__) in QUOTA:
            raise QuotaReached from error
        run.fail(error)
        log.error("#%d failed (%s): %s", run.number, run.title, str(error) or type(error).__name__)
        return None
