"""`hydra/launcher=sagemaker`: each run of a sweep as a training job, several at a time.

One process makes and follows all of them: AWS is asked in turn, so that one loop serves any number of jobs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from imgcls.aws.account import Account
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
from imgcls.system.logs import logging_to

log = logging.getLogger(__name__)

ACCOUNT = ("region", "profile", "bucket", "prefix", "role", "kms_key")  # one for all jobs of a sweep


def launch(
    context: HydraContext, config: DictConfig, jobs: int, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Train each of `job_overrides` in a job of its own, and return what Hydra's launchers return.

    Args:
        context: Hydra's.
        config: the composed configuration.
        jobs: training jobs at a time.
        job_overrides: the overrides of each run.
        first: the number of the first run.

    Raises:
        UserError: for what is wrong before a job is made. A run that fails has its error in its JobReturn.
    """
    check_value("hydra.launcher.jobs", jobs, whole(1))
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    shared = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set[str]()
    runs = []
    for place, words in enumerate(job_overrides):
        own = [word for word in words if word not in shared and not word.startswith("run_dir=")]
        runs.append(_composed(context, config, words, first + place, " ".join(own)))
    launcher = runs[0].launcher
    for run in runs:
        for name in ACCOUNT:
            if getattr(run.launcher, name) != getattr(launcher, name):
                raise UserError(f"launch.{name}: the jobs of a sweep share it. Make a sweep for each.")
    folder = Path(str(config.hydra.sweep.dir))
    folder.mkdir(parents=True, exist_ok=True)
    with logging_to(folder / "launch.log"), StopSignals(), launcher.account(runs[0].config) as account:
        _run_all(account, runs, launcher.at_once(jobs), launcher.poll)
    return [run.returned for run in runs]


@dataclass
class _Run:
    """A run of the sweep.

    Args:
        number: of the run.
        returned: what Hydra gets.
        cfg: its configuration.
        words: its overrides.
        title: those of them that are its own.
    """

    number: int
    returned: JobReturn
    cfg: DictConfig
    words: list[str]
    title: str
    _open: ExitStack = field(default_factory=ExitStack)
    _look: RetryingPoll[Any] | None = None
    _recording: Recording | None = None
    job: str | None = None

    def __post_init__(self) -> None:
        self.config = plain(self.cfg)
        self.folder = Path(str(self.cfg.run_dir)).expanduser()
        launcher = instantiate(self.cfg.launch, _convert_="all")
        if not isinstance(launcher, SageMaker):
            raise UserError("hydra/launcher=sagemaker needs launch=sagemaker, or launch=rehearsal to try it here.")
        check_job(self.config)
        self.launcher = launcher

    def begin(self, account: Account) -> bool:
        """Make the job, or find it; whether there is something to wait for. Raises UserError."""
        recording = Recording(self.folder, self.config, self.words, self.cfg.resume)
        self._recording = self._open.enter_context(recording)
        if recording.finished:
            self._end()
            return False
        self.job = self.launcher.current_job(account, self.folder)
        if self.job is None:
            self.job = self.launcher.new_job(account, self.config, self.words, self.folder)
        recording.update(job=self.job)
        log.info("#%d: %s (%s)", self.number, self.job, self.title)
        if not self.launcher.wait:
            self._open.close()
            return False
        self._look = RetryingPoll(Follower(account, self.job, self.folder / "job.log", lambda line: None).poll)
        return True

    def has_ended(self, account: Account) -> bool:
        """Whether the job has ended; its results are then here. Raises UserError where it failed."""
        assert self._look is not None
        assert self._recording is not None
        end = self._look()
        if end is None:
            return False
        self._recording.update(**conclude(account, end, self.folder))
        self._end()
        return True

    def fail(self, error: BaseException) -> None:
        """Write down what ended the run."""
        if self._recording is not None:
            self._recording.record_failure(error)
        self._open.close()
        self.returned.return_value, self.returned.status = error, JobStatus.FAILED

    def _end(self) -> None:
        from imgcls.runs.run import load

        self._open.close()
        monitor = self.config["checkpoint"]["monitor"]
        value = load(self.folder).metrics.get(monitor)
        self.returned.return_value = value
        shown = f"{monitor}={value:.6g}" if value is not None else "finished"
        log.info("#%d: %s (%s)", self.number, shown, self.title)


def _composed(context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int, title: str) -> _Run:
    """The run of `overrides`; Hydra makes its folder and its JobReturn. Raises UserError for what cannot be right."""
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    found: list[_Run] = []

    def take(cfg: DictConfig) -> None:
        check(cfg)
        words = overrides_of(cfg)
        found.append(_Run(number, JobReturn(), cfg, words, title))

    returned = run_job(
        hydra_context=context,
        task_function=take,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    _ = returned.return_value  # which raises what `take` has raised
    run = found[0]
    run.returned = returned
    return run


def _run_all(account: Account, runs: Sequence[_Run], at_once: int, poll: float) -> None:
    waiting, running = list(runs), list[_Run]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                run = waiting.pop(0)
                running.append(run)
                if not _without_failing(run, run.begin, account):
                    running.remove(run)
            for run in list(running):
                if _without_failing(run, run.has_ended, account) is not False:
                    running.remove(run)
            if running:
                time.sleep(poll)
    except (Interrupted, KeyboardInterrupt) as error:
        for run in running:
            run.fail(error)
            if run.job is not None:
                run.launcher.left_running(run.job, error)
        raise


def _without_failing(run: _Run, do: Any, account: Account) -> bool | None:
    """What `do` returns; None where the run has failed, which the others do not suffer from."""
    try:
        return bool(do(account))
    except (Interrupted, KeyboardInterrupt):
        raise
    except Exception as error:
        raise_if_requested()
        run.fail(error)
        lines = str(error).splitlines() or [type(error).__name__]
        log.error("#%d failed (%s): %s", run.number, run.title, lines[0])
        return None
