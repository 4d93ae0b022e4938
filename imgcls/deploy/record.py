"""What a run's folder knows of its endpoint, so that the same command finds it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imgcls.runs.records import FolderRecord


@dataclass
class EndpointRecord(FolderRecord):
    """The endpoint that was made of a run."""

    FILE: ClassVar[str] = "deploy.json"

    name: str
    region: str
    bucket: str | None = None
    prefix: str = "imgcls"
    profile: str | None = None
