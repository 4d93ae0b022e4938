"""Small records stored in a folder as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

from imgcls.system.files import atomic_write_text


@dataclass
class FolderRecord:
    """Base of dataclasses whose fields are stored in the file `FILE` of a folder."""

    FILE: ClassVar[str]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The record in `folder`; None if it is missing or cannot be read."""
        try:
            return cls(**json.loads((folder / cls.FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Store the record in `folder`."""
        atomic_write_text(folder / self.FILE, json.dumps(asdict(self), indent=2) + "\n")
