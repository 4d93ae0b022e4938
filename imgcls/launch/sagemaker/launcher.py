"""`launch=sagemaker`: trains in a SageMaker job, and downloads its results to the run folder."""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from imgcls.aws.account import Account
from imgcls.aws.costs import describe_cost
from imgcls.aws.instances import has_local_disk
from imgcls.aws.naming import base_name
from imgcls.errors import UserError
from imgcls.launch.sagemaker import debugger
from imgcls.launch.sagemaker.bundle import find_user_modules
from imgcls.launch.sagemaker.channels import upload_channels
from imgcls.launch.sagemaker.image_packages import check_imports
from imgcls.launch.sagemaker.options import JobOptions, check_job
from imgcls.launch.sagemaker.preflight import check_before_upload, check_quota, input_mode
from imgcls.launch.sagemaker.progress import (
    describe,
    is_running,
    last_words,
    outcome,
    say,
    warn_if_created,
)
from imgcls.launch.sagemaker.record import JobRecord
from imgcls.launch.sagemaker.results import await_results
from imgcls.launch.sagemaker.training_job import JobPlan, create_job, image_uri, image_version
from imgcls.launch.sagemaker.wheels import check_wheels
from imgcls.runs.recording import Recording
from imgcls.system.interrupts import StopSignals
from imgcls.system.logs import log_to_file

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imgcls.runs.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SageMaker(JobOptions):
    """Trains in a job of Amazon SageMaker, and waits for it.

    The same command with the same run_dir attaches to a running job, resumes a stopped one, and returns a finished run.

    Attributes:
        where: name of this launcher in the record of a job.
    """

    where: ClassVar[str] = "sagemaker"

    def __call__(self, cfg: DictConfig, overrides: list[str] | None = None) -> Run:
        from imgcls.config.composition import check, plain
        from imgcls.runs.resuming import keep_split
        from imgcls.runs.run import load

        check(cfg)
        folder = Path(cfg.run_dir).expanduser()
        config = plain(keep_split(cfg, folder))
        check_job(config)
        with Recording(folder, config, overrides or [], cfg.resume) as recording:
            if recording.finished:
                log.info("The run in %s has finished already; resume=auto leaves it unchanged.", folder)
                return load(folder)
            logs = log_to_file(folder / "launch.log", terminal=not cfg.quiet)
            with logs, StopSignals(), self.account(config) as account:
                self.run(account, config, overrides or [], folder, recording)
            return load(folder)

    @contextlib.contextmanager
    def account(self, config: dict[str, Any]) -> Iterator[Account]:
        """The account that the job runs in."""
        options = {name: getattr(self, name) for name in ("bucket", "prefix", "role", "kms_key")}
        yield Account.connect(self.region, self.profile, **options)

    def run(
        self, account: Account, config: dict[str, Any], overrides: list[str], folder: Path, recording: Recording
    ) -> None:
        """Create the job or find the running one, wait for it, and download its results."""
        job = self.current_job(account, folder)
        if job is None:
            self.say_cost(account, 1)
            job = self.new_job(account, config, overrides, folder)
            log.info("Created the job %s: %d x %s.", job, self.instance_count, self.instance_type)
        recording.update(job=job)
        if not self.wait:
            log.info("The job continues by itself. To wait for it: python -m imgcls.jobs attach run=%s", folder)
            return
        self.finish(account, job, folder, recording, quiet=config["quiet"])

    def check_limits(self, account: Account, config: dict[str, Any]) -> None:
        """Raise UserError for what AWS would refuse after the upload."""
        check_before_upload(account, config, self)
        check_quota(account, self)

    def say_cost(self, account: Account, jobs: int) -> None:
        """Log the most that `jobs` jobs can cost, each of which reaches its time limit."""
        request = {"ResourceConfig": {"InstanceType": self.instance_type}, "EnableManagedSpotTraining": self.spot}
        hours = jobs * self.instance_count * self.max_runtime / 3600
        log.info("To be billed: %s.", describe_cost(account, request, hours).replace(" more hours", " hours"))
        if not self.spot and not self.keep_alive:
            log.info("launch.spot=true is much cheaper, and an interrupted job resumes to the same numbers.")

    def at_once(self, jobs: int) -> int:
        """How many of `jobs` can run at the same time."""
        return jobs

    def current_job(self, account: Account, folder: Path) -> str | None:
        """The run folder's job that is running or has results to download; None if a new one is needed."""
        record = JobRecord.read(folder)
        if record is None:
            return None
        job = record.job or _find_unrecorded_job(account, record.base)
        if job is None:
            return None
        try:
            description = describe(account, job)
        except UserError as error:
            raise UserError(f"{error}\n{last_words(job, {})}") from error
        if is_running(description):
            log.info("Attached to the running job %s.", job)
            return job
        if description["TrainingJobStatus"] == "Completed":
            return job
        log.info(
            "%s ended (%s); a new job resumes from its checkpoints.", job, outcome(description).reason or "stopped"
        )
        return None

    def current_tuning(self, account: Account, folder: Path, is_there: Callable[[Account, str], bool]) -> str | None:
        """The tuning job of this sweep's folder; None if a new one is needed."""
        record = JobRecord.read(folder)
        return record.job if record is not None and record.job is not None and is_there(account, record.job) else None

    def new_job(self, account: Account, config: dict[str, Any], overrides: list[str], folder: Path) -> str:
        """Upload what the job needs and create it; its record is written before and after. Returns its name."""
        record = JobRecord.read(folder) or JobRecord(
            base_name(self.name or config["model"]["name"]),
            self.where,
            account.region,
            account.places.bucket,
            account.places.prefix,
            profile=self.profile,
        )
        role = account.role_arn  # before anything is uploaded
        self.check_limits(account, config)
        if has_local_disk(self.instance_type) and self.volume_size != JobOptions.volume_size:
            log.warning("launch.volume_size has no effect: %s has a local disk of a fixed size.", self.instance_type)
        log.debug("The role of the job is %s.", role)
        image = self.image or image_uri(self, account.region)  # an image that AWS lacks is reported here
        say_versions(image)
        self.check_packages(image, [config])
        channels = upload_channels(account, config)
        record.job = None
        record.write(folder)
        plan = JobPlan(record.base, config, overrides, self, channels, input_mode(config, self))
        with warn_if_created("the job", "run the same command again to find it, or python -m imgcls.jobs"):
            record.job = create_job(account, self.with_debugger(plan, account) if self.debugger else plan)
        record.write(folder)
        return record.job

    def check_packages(self, image: str, configs: Sequence[dict[str, Any]]) -> None:
        """Raise UserError if jobs of `configs` import what neither the image has nor they bring or install."""
        lines = self.requirements_for(configs).splitlines()
        if self.wheels_folder is not None:
            check_wheels(self.wheels_folder, lines, image)
        for config in configs:
            code = find_user_modules(config, self.code)
            if self.image is None:
                check_imports(config, code, lines)

    def with_debugger(self, plan: JobPlan, account: Account) -> JobPlan:
        """The plan of a job with SageMaker Debugger. Raises UserError if its options are invalid."""
        log.warning(debugger.CLOSED)
        target = {"output": account.places.uri("jobs", plan.base, "debugger"), "region": account.region}
        options, config = self.debugger_options, dict(plan.config)
        debugger.debugger_fields(options, job=plan.base, **target)  # errors are reported before the upload
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
            more=lambda job: debugger.debugger_fields(options, job=job, **target),
        )

    def finish(self, account: Account, job: str, folder: Path, recording: Recording, *, quiet: bool = False) -> None:
        """Wait for the job and download its results. Raises UserError if it failed."""
        report: Callable[[str], None] = (lambda line: None) if quiet else say
        status = await_results(account, job, folder, poll=self.poll, say=report, describe_rest=self.last_words)
        recording.update(**status)

    def last_words(self, job: str, description: dict[str, Any]) -> str:
        """What becomes of the job, or tuning job, when this command ends before it."""
        return last_words(job, description)


def say_versions(image: str) -> None:
    """Log the version of PyTorch that jobs have, if it is not the one of this machine."""
    theirs, ours = image_version(image), metadata.version("torch").partition("+")[0]
    if theirs is not None and not ours.startswith(f"{theirs}.") and ours != theirs:
        log.info("The image of the job has PyTorch %s; on this machine it is %s.", theirs, ours)


def _find_unrecorded_job(account: Account, base: str) -> str | None:
    """A job that was created, but not recorded because this program was killed."""
    jobs = account.client("sagemaker").list_training_jobs(
        NameContains=base, SortBy="CreationTime", SortOrder="Descending"
    )
    return next((str(job["TrainingJobName"]) for job in jobs["TrainingJobSummaries"]), None)
