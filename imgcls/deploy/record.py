"""What a run's folder knows of its endpoint, so that the same command finds it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from imgcls.files import atomic_write_text

FILE = "deploy.json"


@dataclass(frozen=True)
class EndpointRecord:
    """The endpoint that was made of a run."""

    name: str
    region: str
    bucket: str | None = None
    prefix: str = "imgcls"
    profile: str | None = None

    @classmethod
    def read(cls, folder: Path) -> EndpointRecord | None:
        """The record in `folder`; None where there is none that can be read."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Keep it in `folder`."""
        atomic_write_text(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")
