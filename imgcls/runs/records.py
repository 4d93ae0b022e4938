"""Small records that a folder keeps as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

from imgcls.system.files import atomic_write_text


@dataclass
class FolderRecord:
    """What a folder keeps in its file `FILE`: the fields of the dataclass that is derived from this."""

    FILE: ClassVar[str]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The record in `folder`; None where there is none that can be read."""
        try:
            return cls(**json.loads((folder / cls.FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Keep it in `folder`."""
        atomic_write_text(folder / self.FILE, json.dumps(asdict(self), indent=2) + "\n")
