"""The record of a run's endpoint in its folder, by which later commands find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imgcls.runs.records import FolderRecord


@dataclass
class EndpointRecord(FolderRecord):
    """The endpoint of a run."""

    FILE: ClassVar[str] = "deploy.json"

    name: str
    region: str
    bucket: str | None = None
    prefix: str = "imgcls"
    profile: str | None = None
