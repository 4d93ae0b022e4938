"""What the run folder knows of its job, so that the same command finds it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from imgcls.files import atomic_write_text

FILE = "job.json"


@dataclass
class JobRecord:
    """The job of a run folder, or the tuning job of a sweep's folder."""

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

    @classmethod
    def read(cls, folder: Path) -> JobRecord | None:
        """The record in `folder`, None where there is none that can be read."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Keep it in `folder`."""
        atomic_write_text(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")
