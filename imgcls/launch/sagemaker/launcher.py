"""`launch=sagemaker`: the run becomes a training job, and its results come back to the run folder."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from imgcls.aws.account import Account
from imgcls.aws.naming import base_name
from imgcls.errors import UserError
from imgcls.launch.sagemaker.channels import upload_channels
from imgcls.launch.sagemaker.options import JobOptions, check_job
from imgcls.launch.sagemaker.progress import describe, ended, is_running, say
from imgcls.launch.sagemaker.record import JobRecord
from imgcls.launch.sagemaker.results import await_results
from imgcls.launch.sagemaker.training_job import JobPlan, create_job
from imgcls.runs.recording import Recording
from imgcls.system.interrupts import Interrupted, StopSignals
from imgcls.system.logs import logging_to

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imgcls.runs.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SageMaker(JobOptions):
    """Trains in a job of Amazon SageMaker, and waits for it.

    The same command with the same run_dir attaches to a job that still runs, goes on with one that was stopped, and
    returns a finished run.

    Attributes:
        where: what the record of a job says of its place.
    """

    where: ClassVar[str] = "sagemaker"

    def __call__(self, cfg: DictConfig, overrides: list[str] | None = None) -> Run:
        from imgcls.config.composition import check, plain
        from imgcls.runs.run import load

        check(cfg)
        config = plain(cfg)
        check_job(config)
        folder = Path(cfg.run_dir).expanduser()
        with Recording(folder, config, overrides or [], cfg.resume) as recording:
            if recording.finished:
                log.info("%s holds this run, finished. resume=auto leaves it as it is.", folder)
                return load(folder)
            told = logging_to(folder / "launch.log", terminal=not cfg.quiet)
            with told, StopSignals(), self.account(config) as account:
                self.run(account, config, overrides or [], folder, recording)
            return load(folder)

    @contextlib.contextmanager
    def account(self, config: dict[str, Any]) -> Iterator[Account]:
        """The account that the job runs in."""
        yield Account.connect(
            self.region,
            self.profile,
            bucket=self.bucket,
            prefix=self.prefix,
            role=self.role,
            kms_key=self.kms_key,
        )

    def run(
        self, account: Account, config: dict[str, Any], overrides: list[str], folder: Path, recording: Recording
    ) -> None:
        """Make the job, or find the one that runs; wait for it; fetch its results."""
        job = self.current_job(account, folder)
        if job is None:
            job = self.new_job(account, config, overrides, folder)
            log.info("Made the job %s: %d x %s.", job, self.instance_count, self.instance_type)
        recording.update(job=job)
        if not self.wait:
            log.info("It goes on by itself: python -m imgcls.jobs attach run=%s", folder)
            return
        self.finish(account, job, folder, recording, quiet=config["quiet"])

    def at_once(self, jobs: int) -> int:
        """How many of `jobs` such jobs can run at the same time."""
        return jobs

    def current_job(self, account: Account, folder: Path) -> str | None:
        """The job of this run folder that runs, or has finished and is not fetched; None where a new one is needed."""
        record = JobRecord.read(folder)
        if record is None:
            return None
        job = record.job or _lost(account, record.base)
        if job is None:
            return None
        description = describe(account, job)
        if is_running(description):
            log.info("Attached to %s, which runs already.", job)
            return job
        if description["TrainingJobStatus"] == "Completed":
            return job
        log.info("%s ended (%s); a new job goes on from its checkpoints.", job, ended(description).reason or "stopped")
        return None

    def current_tuning(self, account: Account, folder: Path, is_there: Callable[[Account, str], bool]) -> str | None:
        """The tuning job of this sweep's folder; None where a new one is needed."""
        record = JobRecord.read(folder)
        return record.job if record is not None and record.job is not None and is_there(account, record.job) else None

    def new_job(self, account: Account, config: dict[str, Any], overrides: list[str], folder: Path) -> str:
        """Upload what is needed and make the job; its name. The record of it is written before and after."""
        record = JobRecord.read(folder) or JobRecord(
            base_name(self.name or config["model"]["name"]),
            self.where,
            account.region,
            account.places.bucket,
            account.places.prefix,
            profile=self.profile,
        )
        role = account.role_arn  # before anything is uploaded
        log.debug("The job runs as %s.", role)
        channels = upload_channels(account, config)
        record.job = None
        record.write(folder)
        plan = JobPlan(record.base, config, overrides, self, channels)
        record.job = create_job(account, self.with_debugger(plan, account) if self.debugger else plan)
        record.write(folder)
        return record.job

    def with_debugger(self, plan: JobPlan, account: Account) -> JobPlan:
        """The plan of a job that SageMaker Debugger watches. Raises UserError where it cannot."""
        from imgcls.launch.sagemaker import debugger
        from imgcls.launch.sagemaker.training_job import image_uri

        log.warning(debugger.CLOSED)
        place = {"output": account.places.uri("jobs", plan.base, "debugger"), "region": account.region}
        options, config = self.debugger_options, dict(plan.config)
        debugger.debugger_fields(options, job=plan.base, **place)  # what is wrong is said before the upload
        requirements: list[str] = []
        if debugger.has_tensor_rules(options):
            debugger.check_python(self.image or image_uri(self, account.region))
            requirements = debugger.REQUIREMENTS
            if "smdebug" not in config["debug"]:
                raise UserError("launch.debugger=true: its tensor rules need debug=default, which saves the tensors.")
            config["debug"] = {**config["debug"], "smdebug": True}
        return replace(
            plan,
            config=config,
            requirements=requirements,
            more=lambda job: debugger.debugger_fields(options, job=job, **place),
        )

    def finish(self, account: Account, job: str, folder: Path, recording: Recording, *, quiet: bool = False) -> None:
        """Wait for the job and bring its results here. Raises UserError where it failed."""
        shown: Callable[[str], None] = (lambda line: None) if quiet else say
        try:
            recording.update(**await_results(account, job, folder, poll=self.poll, say=shown))
        except (Interrupted, KeyboardInterrupt) as error:
            self.left_running(job, error)
            raise

    def left_running(self, job: str, error: BaseException) -> None:
        """What is to be said when the user leaves with `error` before the job, or tuning job, ends."""
        log.warning("The job goes on, and costs. To stop it: python -m imgcls.jobs stop job=%s", job)


def _lost(account: Account, base: str) -> str | None:
    """A job that was made while this program was killed, before it could write the name down."""
    found = account.client("sagemaker").list_training_jobs(
        NameContains=base, SortBy="CreationTime", SortOrder="Descending"
    )
    names = [one["TrainingJobName"] for one in found["TrainingJobSummaries"]]
    return str(names[0]) if names else None
