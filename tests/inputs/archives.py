"""Archives with members that nobody packs by accident."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
