"""The record of a run's job in its folder, by which later commands find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imgcls.runs.records import FolderRecord


@dataclass
class JobRecord(FolderRecord):
    """The job of a run folder, or the tuning job of a sweep's folder."""

    FILE: ClassVar[str] = "job.json"

    base: str
    """Prefix of the names of all jobs of this run; the full name of a tuning job."""
    where: str
    """sagemaker or rehearsal."""
    region: str
    bucket: str
    prefix: str
    job: str | None = None
    """Name of the latest job; None until AWS has confirmed its creation."""
    profile: str | None = None
    finished: bool = False
    """Whether all results of a tuning job have been downloaded."""
