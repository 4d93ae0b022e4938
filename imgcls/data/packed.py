"""A data set that is given as one archive: unpacked once, into the cache, and used from there."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

from imgcls.config.choices import ARCHIVE_SUFFIXES
from imgcls.errors import UserError
from imgcls.images.paths import file_state
from imgcls.system.cache import DESCRIPTIONS, alone
from imgcls.system.files import atomic_write_text
from imgcls.system.machine import spare_disk
from imgcls.system.unpacking import extract

DESCRIPTION = DESCRIPTIONS["unpacked"]
SPLIT_NAMES = ("train", "training")


def is_archive(root: Path | None) -> bool:
    """Whether `root` is an archive and not a folder."""
    return root is not None and root.name.lower().endswith(ARCHIVE_SUFFIXES) and root.is_file()


def unpacked_folder(archive: Path, cache: Path) -> Path:
    """The folder of the content of `archive`, named after its place and state; it may not exist yet."""
    content = f"{archive.resolve()}\0{file_state(archive)}".encode("utf-8", "surrogateescape")
    return cache / "unpacked" / hashlib.blake2b(content, digest_size=16).hexdigest()


def unpack_once(archive: Path, folder: Path) -> None:
    """Unpack `archive` into `folder`, which exists only when it is complete; other processes wait meanwhile.

    A single folder that everything in the archive is in is left out. Raises UserError for an archive that
    `imgcls.system.unpacking` refuses.
    """
    with alone(folder):
        if (folder / DESCRIPTION).is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier version
        beside = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            extract(archive, beside, room=spare_disk(folder))
            shutil.rmtree(beside / "__MACOSX", ignore_errors=True)
            images = _innermost(beside)
            atomic_write_text(images / DESCRIPTION, json.dumps({"archive": str(archive)}))
            images.replace(folder)
        except UserError as error:
            reason = str(error).replace(" Remove it and try again.", "")
            reason = re.sub(
                r"file could not be opened successfully:.*", "it is no zip or tar file.", reason, flags=re.S
            )
            raise UserError(f"{reason} Or give the folder that you have unpacked it to.") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _innermost(folder: Path) -> Path:
    """The folder below `folder` with more than one folder in it, or with files."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in SPLIT_NAMES:
        return folder
    below = inside[0]
    return _innermost(below) if any(path.is_dir() for path in below.iterdir()) else folder
