"""Images whose bytes are in a table or a data set of Hugging Face: unpacked once, into the cache, and used as files."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from imgcls.system.cache import DESCRIPTIONS, find_or_build, hold

FILES_PER_FOLDER = 1000
DESCRIPTION = DESCRIPTIONS["unpacked"]  # the names
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}


@dataclass(frozen=True)
class EmbeddedImages:
    """The images in a column, as the struct of bytes and path in which `datasets` writes them, or bytes alone."""

    key: Sequence[object]
    """Changes with the content."""
    read: Callable[[], Iterable[Any]]
    """Yields the cell of each row."""


def unpack_images(images: EmbeddedImages, cache: Path) -> tuple[Path, list[str], IO[bytes]]:
    """The folder with the files of `images`, and each row's path from there; '' for a row without an image.

    The folder is kept in the cache as long as the file in the result is open. Files are named by the numbers of their
    rows, counted from 1. An image that is only a path stays where it is.
    """
    digest = hashlib.blake2b(json.dumps([*images.key], default=str).encode("utf-8", "surrogateescape"), digest_size=16)
    folder = cache / "unpacked" / digest.hexdigest()

    def find() -> tuple[list[str], IO[bytes]] | None:
        try:
            return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")), hold(folder / DESCRIPTION)
        except (OSError, ValueError):
            return None

    def build(partial: Path) -> None:
        names = [_write(partial, row, cell) for row, cell in enumerate(images.read(), start=1)]
        (partial / DESCRIPTION).write_text(json.dumps(names), encoding="utf-8")

    return folder, *find_or_build(folder, find, build)


def _write(folder: Path, row: int, cell: Any) -> str:
    """Write the image of a row; return its path from `folder`."""
    content, path = content_of(cell)
    if not content:
        return path
    name = f"{row // FILES_PER_FOLDER:03}/{row}{suffix_of(content)}"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return name


def content_of(cell: Any) -> tuple[bytes, str]:
    """The bytes of an image, and its path where the cell says it; each may be empty."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    return content or b"", str(path or "")


def suffix_of(content: bytes) -> str:
    """The usual suffix of the format of an image; '.bin' for what is none, which is reported when it is decoded."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            kind = opened.format or ""
    except Exception:  # of whatever kind, Pillow's decoders raise many
        return ".bin"
    return SUFFIXES.get(kind, f".{kind.lower()}")
