"""`data.root=s3://bucket/prefix`: a folder in the cache that mirrors the bucket."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import (
    WORKERS,
    Ledger,
    StoredFile,
    fetch_file,
    is_remote,
    list_objects,
    make_client,
    split_folder,
    transfer,
)
from imgcls.errors import UserError
from imgcls.system.cache import alone, cache_folder
from imgcls.system.files import explain_os_errors

log = logging.getLogger(__name__)

LEDGER = ".imgcls-remote.json"  # hidden, so that it is not taken for an image


def local_root(root: str | Path | None, cache: Path | None = None, option: str = "data.root") -> Path | None:
    """The local folder of `root`: itself, or where `synchronise` downloads an address to. Downloads nothing."""
    if not is_remote(root):
        return Path(root).expanduser() if root is not None else None
    bucket, prefix = split_folder(str(root), option)
    return (cache or cache_folder()) / "remote" / bucket / Path(*prefix.split("/"))


def synchronise(
    address: str, folder: Path, *, client: Any = None, workers: int = WORKERS, option: str = "data.root"
) -> None:
    """Make `folder` a copy of `address`: download what is new or changed, remove what was deleted there.

    The next call resumes an interrupted one; of several processes one downloads and the others wait. Files get the
    modification time of their objects, so a store of decoded pixels stays valid.

    Args:
        address: s3://bucket/prefix.
        folder: written by this function alone.
        client: a boto3 client of S3; made from the environment if None.
        workers: maximum number of parallel downloads.
        option: that gives the address, for errors.

    Raises:
        UserError: no access, no such bucket, an empty folder, no network, no boto3.
    """
    bucket, _ = split_folder(address, option)
    with alone(folder), explain_refusals(f"read {option}={address}"), explain_os_errors(folder):
        client = client or make_client(f"{option}=s3://…")
        remote = {stored.path: stored for stored in list_objects(client, address)}
        if not remote:
            raise UserError(f"{option}={address}: this folder is empty or does not exist.")
        ledger = Ledger(folder / LEDGER)
        for path in [path for path in ledger if path not in remote]:
            _remove(folder, path)
            del ledger[path]
        missing = [stored for stored in remote.values() if not _is_current(folder, stored, ledger)]
        current = remote.keys() - {stored.path for stored in missing}
        ledger.update({path: [remote[path].etag, remote[path].size] for path in current})
        if missing:
            log.info("%s: downloading %s of %s files to %s.", address, f"{len(missing):,}", f"{len(remote):,}", folder)

        def fetch(stored: StoredFile) -> None:
            fetch_file(client, stored, folder / stored.path)
            ledger[stored.path] = [stored.etag, stored.size]

        try:
            transfer(missing, fetch, f"downloading {len(missing):,} files from {bucket}", workers)
        finally:
            ledger.write()


def _is_current(folder: Path, stored: StoredFile, ledger: Ledger) -> bool:
    try:
        status = (folder / stored.path).stat()
    except OSError:
        return False
    if status.st_size != stored.size:
        return False
    if stored.path in ledger:
        return bool(ledger[stored.path] == [stored.etag, stored.size])
    # a call that was killed has fetched it; its time is that of the object
    return abs(status.st_mtime - stored.modified.timestamp()) < 0.001


def _remove(folder: Path, path: str) -> None:
    file = folder / path
    file.unlink(missing_ok=True)
    for parent in file.relative_to(folder).parents[:-1]:
        with contextlib.suppress(OSError):  # not empty
            (folder / parent).rmdir()
