"""`run_dir=s3://bucket/prefix`: a run folder in the cache that is copied to S3 as it grows."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imgcls.aws.refusals import explain, explain_refusals
from imgcls.aws.s3 import Ledger, fetch_file, list_objects, make_client, split_folder
from imgcls.errors import UserError
from imgcls.system.background import repeat
from imgcls.system.cache import cache_folder
from imgcls.system.files import explain_os_errors

log = logging.getLogger(__name__)

PERIOD_SECONDS = 15.0  # between two scans of the folder
UPLOADED_LAST = ("checkpoints/last.ckpt", "status.json")  # in this order
LEDGER = ".mirror.json"


def local_folder(address: str) -> Path:
    """The folder in the cache of the run at `address`. Raises UserError if the address is not valid."""
    bucket, prefix = _bucket_and_prefix(address)
    return cache_folder() / "runs" / bucket / Path(*prefix.split("/"))


@contextlib.contextmanager
def mirror_folder(address: str, *, client: Any = None, period: float = PERIOD_SECONDS) -> Iterator[Path]:
    """Download the run folder at `address`, and copy its changes to S3 while the block runs and at its end.

    Args:
        address: s3://bucket/prefix; only one machine at a time may write to it.
        client: a boto3 client of S3; made from the environment if None.
        period: seconds between two scans for changes.

    Raises:
        UserError: S3 cannot be read, or not be written to at the end; the folder then holds the whole run.
    """
    mirror = Mirror(address, client)
    mirror.download()

    def upload() -> None:
        try:
            mirror.upload()
        except Exception as error:  # the network may be back at the next scan
            log.warning("%s", explain(error, f"write to {address}") or error)

    try:
        with repeat(upload, period, "imgcls-mirror"):
            yield mirror.folder
    finally:
        with explain_refusals(f"write to {address} (the whole run is in {mirror.folder})"):
            mirror.upload()


def fetch_run(address: str, *, client: Any = None) -> Path:
    """The up-to-date local folder of the run at `address`. Raises UserError."""
    mirror = Mirror(address, client)
    mirror.download()
    return mirror.folder


class Mirror:
    """A folder and its copy in S3."""

    def __init__(self, address: str, client: Any = None) -> None:
        self.address, self.folder = address, local_folder(address)
        self.bucket, self.prefix = _bucket_and_prefix(address)
        self.client = client or make_client("run_dir=s3://…")
        self.ledger = Ledger(self.folder / LEDGER)
        """Path of a file to the ETag that it had when this machine uploaded or downloaded it."""
        self.states: dict[str, tuple[int, int]] = {}
        """Path of a file to its size and modification time (ns) at that moment."""

    def download(self) -> None:
        """Download what another machine has written; files that come from here are kept. Raises UserError."""
        with explain_refusals(f"read {self.address}"), explain_os_errors(self.folder):
            for stored in list_objects(self.client, self.address):
                file = self.folder / stored.path
                if self.ledger.get(stored.path) != stored.etag or not file.is_file():
                    fetch_file(self.client, stored, file)
                    self.ledger[stored.path] = stored.etag
                    self.states[stored.path] = _state(file)
            self._write_ledger()

    def upload(self) -> None:
        """Upload what changed in the folder, and delete in S3 what was removed here.

        `last.ckpt` refers to `best.ckpt`, which training writes first. So it is linked first and uploaded last: the
        objects in S3 are consistent at any time, or best.ckpt is newer, which the resumed run writes again.
        """
        files = {path.relative_to(self.folder).as_posix(): path for path in self._files()}
        links: dict[str, tuple[Path, tuple[int, int]]] = {}
        try:
            for path in sorted(files, key=_upload_order, reverse=True):
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    self._link(path, files[path], links)
            for path in sorted(links, key=_upload_order):
                link, state = links[path]
                key = f"{self.prefix}/{path}"
                self.client.upload_file(str(link), self.bucket, key)
                self.ledger[path] = self.client.head_object(Bucket=self.bucket, Key=key)["ETag"]
                self.states[path] = state
        finally:
            for link, _ in links.values():
                link.unlink(missing_ok=True)
        for path in [path for path in self.ledger if path not in files]:
            self.client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}")
            del self.ledger[path]
        if links:
            self._write_ledger()

    def _link(self, path: str, file: Path, links: dict[str, tuple[Path, tuple[int, int]]]) -> None:
        """Hard-link a changed file: its name may refer to a new file before the upload ends."""
        if self.states.get(path) == _state(file):
            return
        link = file.with_name(f".{file.name}.sent")
        link.unlink(missing_ok=True)
        os.link(file, link)
        links[path] = link, _state(link)

    def _write_ledger(self) -> None:
        if self.folder.is_dir():
            self.ledger.write()

    def _files(self) -> Iterator[Path]:
        for path in self.folder.rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(self.folder).parts)
            if path.is_file() and not hidden:
                yield path


def _upload_order(path: str) -> tuple[int, str]:
    return (UPLOADED_LAST.index(path) + 1 if path in UPLOADED_LAST else 0, path)


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _bucket_and_prefix(address: str) -> tuple[str, str]:
    bucket, prefix = split_folder(address, "run_dir")
    if not prefix:
        raise UserError(f"run_dir={address}: expected s3://bucket/folder.")
    return bucket, prefix
