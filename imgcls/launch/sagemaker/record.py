"""What the run folder knows of its job, so that the same command finds it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imgcls.runs.records import FolderRecord


@dataclass
class JobRecord(FolderRecord):
    """The job of a run folder, or the tuning job of a sweep's folder."""

    FILE: ClassVar[str] = "job.json"

    base: str
    """The start of the names of all jobs of this run; the whole name of a tuning job."""
    where: str
    """sagemaker or rehearsal."""
    region: str
    bucket: str
    prefix: str
    job: str | None = None
    """The latest job; None until AWS has said that it is made."""
    profile: str | None = None
    finished: bool = False
    """Of a tuning job: its results are all here."""
