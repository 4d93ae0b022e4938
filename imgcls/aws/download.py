"""`data.root=s3://bucket/prefix`: kept as a folder in the cache that holds what the bucket holds."""

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

LEDGER = ".imgcls-remote.json"  # hidden, so that it is no picture


def local_root(root: str | Path | None, cache: Path | None = None) -> Path | None:
    """The folder of `root`: itself, or where `synchronise` is to put what is at an address. Fetches nothing."""
    if not is_remote(root):
        return Path(root).expanduser() if root is not None else None
    bucket, prefix = split_folder(str(root), "data.root")
    return (cache or cache_folder()) / "remote" / bucket / Path(*prefix.split("/"))


def synchronise(address: str, folder: Path, *, client: Any = None, workers: int = WORKERS) -> None:
    """Make `folder` hold what is at `address`: fetch what is new or changed, remove what is gone there.

    An interrupted call is resumed by the next one; of several processes one works and the others wait. Files get the
    time of change that they have in the bucket, so a store of decoded pixels stays valid.

    Args:
        address: s3://bucket/prefix.
        folder: written by this function alone.
        client: a boto3 client of S3; made from the environment if None.
        workers: downloads at a time.

    Raises:
        UserError: no access, no such bucket, nothing there, no network, no boto3.
    """
    bucket, _ = split_folder(address, "data.root")
    with alone(folder), explain_refusals(f"read data.root={address}"), explain_os_errors(folder):
        client = client or make_client("data.root=s3://…")
        wanted = {stored.place: stored for stored in list_objects(client, address)}
        if not wanted:
            raise UserError(f"data.root={address}: there is nothing at this address.")
        ledger = Ledger(folder / LEDGER)
        for place in [place for place in ledger if place not in wanted]:
            _remove(folder, place)
            del ledger[place]
        missing = [stored for stored in wanted.values() if not _is_current(folder, stored, ledger)]
        log.info("%s: %d of %d files are fetched to %s.", address, len(missing), len(wanted), folder)

        def fetch(stored: StoredFile) -> None:
            fetch_file(client, stored, folder / stored.place)
            ledger[stored.place] = [stored.etag, stored.size]

        try:
            transfer(missing, fetch, f"fetching {len(missing):,} files from {bucket}", workers)
        finally:
            ledger.write()


def _is_current(folder: Path, stored: StoredFile, ledger: Ledger) -> bool:
    try:
        size = (folder / stored.place).stat().st_size
    except OSError:
        return False
    return size == stored.size and ledger.get(stored.place) == [stored.etag, stored.size]


def _remove(folder: Path, place: str) -> None:
    file = folder / place
    file.unlink(missing_ok=True)
    for parent in file.relative_to(folder).parents[:-1]:
        with contextlib.suppress(OSError):  # not empty
            (folder / parent).rmdir()
