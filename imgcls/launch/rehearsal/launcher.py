"""`launch=rehearsal`: the same job on this machine, without AWS account and Docker."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from imgcls.aws.account import Account
from imgcls.aws.s3 import is_remote
from imgcls.aws.upload import upload_name
from imgcls.errors import UserError
from imgcls.launch.rehearsal.aws import ROLE, LocalAws
from imgcls.launch.rehearsal.image import check_toolkit
from imgcls.launch.rehearsal.job import RehearsedJob
from imgcls.launch.rehearsal.namespaces import check_namespaces
from imgcls.launch.rehearsal.supervisor import LOCK
from imgcls.launch.sagemaker.channels import data_root, data_set_folder
from imgcls.launch.sagemaker.launcher import SageMaker
from imgcls.launch.sagemaker.preflight import check_before_upload
from imgcls.system.cache import alone, cache_folder

log = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 64 << 20  # a larger data set is read in place
MAX_UPLOAD_FILES = 1000  # which take a few seconds
START = "imgcls-rehearsal-"


@dataclass(frozen=True)
class Rehearsal(SageMaker):
    """Runs the job on this machine: moto is the AWS account, Linux namespaces are the containers.

    Args:
        interrupt: interrupt the job in the middle of the training like a spot job, and restart it from its checkpoints.
    """

    where: ClassVar[str] = "rehearsal"
    interrupt: bool = False
    poll: float = 0.2

    @contextlib.contextmanager
    def account(self, config: dict[str, Any]) -> Iterator[Account]:
        """A simulated AWS account in this process."""
        check_namespaces()
        if is_remote(data_root(config["data"])):
            raise UserError("launch=rehearsal cannot read S3. Give a local folder with data.root=DIR.")
        remove_left_over()
        stage = Stage(config, max(1, config["trainer"]["max_epochs"] // 2) if self.interrupt else None)
        with _lock_multi_host(self.instance_count), LocalAws(stage.begin, stage.stop, strict=True) as aws:
            stage.aws = aws
            try:
                yield stage.account(self.role or ROLE, self.prefix)
            finally:
                stage.close()

    def at_once(self, jobs: int) -> int:
        """One job with several hosts at a time: the hosts meet at a fixed port of this machine."""
        return jobs if self.instance_count == 1 else 1

    def check_limits(self, account: Account, config: dict[str, Any]) -> None:
        """The same without quotas, which a simulated account does not have."""
        check_before_upload(account, config, self)

    def say_cost(self, account: Account, jobs: int) -> None:
        """Nothing: a rehearsal is free."""

    def current_job(self, account: Account, folder: Path) -> str | None:
        """None: earlier jobs ended with their accounts."""
        return None

    def current_tuning(self, account: Account, folder: Path, is_there: Callable[[Account, str], bool]) -> str | None:
        """None: earlier jobs ended with their accounts."""
        check_toolkit()
        return None

    def last_words(self, job: str, description: dict[str, Any]) -> str:
        """That it has ended with the account."""
        return f"The job {job} ended with the rehearsal."


class Stage:
    """The jobs of one rehearsal.

    Args:
        config: the composed configuration.
        interrupt_after: epochs after which jobs are interrupted; None: never.
    """

    aws: LocalAws

    def __init__(self, config: dict[str, Any], interrupt_after: int | None) -> None:
        self.config, self.interrupt_after = config, interrupt_after
        self.jobs: dict[str, RehearsedJob] = {}
        self.links: dict[str, Path] = {}

    def account(self, role: str, prefix: str) -> Account:
        """The account; a large data set is linked instead of uploaded."""
        self.aws.add_role(role)  # a rehearsal has every role
        account = Account(self.aws.session(), role=role, prefix=prefix)
        folder = data_set_folder(self.config)
        if folder is not None and _is_large(folder):
            uri = account.places.uri("data", upload_name(folder, account.caller_identity))
            self.links[f"{uri}/"] = folder
            account.in_place.add(uri)
            log.info("%s is large: the job reads it in place, without write access.", folder)
        return account

    def begin(self, request: dict[str, Any]) -> None:
        """Run the job of a CreateTrainingJob request."""
        name = request["TrainingJobName"]
        work = Path(tempfile.mkdtemp(prefix=START))
        job = RehearsedJob(
            request, self.aws.job(name), self.aws.session("role"), work, dict(self.links), self.interrupt_after
        )
        self.jobs[name] = job
        job.thread.start()

    def stop(self, name: str) -> None:
        """Stop a job."""
        if name in self.jobs:
            self.jobs[name].stop.set()

    def close(self) -> None:
        """End and remove all jobs."""
        for job in self.jobs.values():
            job.close()


def remove_left_over() -> None:
    """Remove the folders of killed rehearsals, whose locks are free."""
    for work in Path(tempfile.gettempdir()).glob(f"{START}*"):
        try:
            with (work / LOCK).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _lock_multi_host(count: int) -> Iterator[None]:
    """Allow one job with several hosts at a time: the SDK has chosen the port at which they meet."""
    if count == 1:
        yield
    else:
        with alone(cache_folder() / "rehearsal-hosts"):
            yield


def _is_large(folder: Path) -> bool:
    """Whether `folder` has too many bytes or files to upload."""
    size = count = 0
    for path in folder.rglob("*"):
        if path.is_file():
            size, count = size + path.stat().st_size, count + 1
            if size > MAX_UPLOAD_BYTES or count > MAX_UPLOAD_FILES:
                return True
    return False
