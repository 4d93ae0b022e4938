"""`run_dir=s3://bucket/prefix`: a run folder in the cache whose content is kept in S3 as it grows."""

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

PERIOD = 15.0  # seconds between two looks at the folder
LATE = ("checkpoints/last.ckpt", "status.json")  # sent after everything else, in this order
LEDGER = ".mirror.json"


def local_place(address: str) -> Path:
    """The folder in the cache of a run at `address`. Raises UserError for what is no address."""
    bucket, prefix = _bucket_and_prefix(address)
    return cache_folder() / "runs" / bucket / Path(*prefix.split("/"))


@contextlib.contextmanager
def mirror_folder(address: str, *, client: Any = None, period: float = PERIOD) -> Iterator[Path]:
    """The run folder at `address`, fetched to this machine and kept in S3 while the block runs, and at its end.

    Args:
        address: s3://bucket/prefix; one machine may write to it at a time.
        client: a boto3 client of S3; made from the environment if None.
        period: seconds between two looks for what changed.

    Raises:
        UserError: S3 cannot be read, or not be written to at the end; the folder then has all.
    """
    mirror = Mirror(address, client)
    mirror.fetch()

    def keep() -> None:
        try:
            mirror.send()
        except Exception as error:  # the network may be back at the next look
            log.warning("%s", explain(error, f"write to {address}") or error)

    try:
        with repeat(keep, period, "imgcls-mirror"):
            yield mirror.folder
    finally:
        with explain_refusals(f"write to {address} (all of the run is in {mirror.folder})"):
            mirror.send()


def fetch_run(address: str, *, client: Any = None) -> Path:
    """The folder of the run at `address`, brought up to date. Raises UserError."""
    mirror = Mirror(address, client)
    mirror.fetch()
    return mirror.folder


class Mirror:
    """A folder and its copy in S3."""

    def __init__(self, address: str, client: Any = None) -> None:
        self.address, self.folder = address, local_place(address)
        self.bucket, self.prefix = _bucket_and_prefix(address)
        self.client = client or make_client("run_dir=s3://…")
        self.ours = Ledger(self.folder / LEDGER)
        """Place of a file to the hash in S3 of what this machine has sent or fetched."""
        self.states: dict[str, tuple[int, int]] = {}
        """Place of a file to its size and time of change (ns) when it was sent."""

    def fetch(self) -> None:
        """Bring what another machine has written to the folder; what came from here is kept. Raises UserError."""
        with explain_refusals(f"read {self.address}"), explain_os_errors(self.folder):
            for stored in list_objects(self.client, self.address):
                file = self.folder / stored.place
                if self.ours.get(stored.place) != stored.etag or not file.is_file():
                    fetch_file(self.client, stored, file)
                    self.ours[stored.place] = stored.etag
                    self.states[stored.place] = _state(file)
            self._write_ledger()

    def send(self) -> None:
        """Bring what changed in the folder to S3, and remove there what is gone here.

        `last.ckpt` refers to `best.ckpt`, which training writes before it. So its state is taken first and sent last:
        what is in S3 at any moment belongs together, or has a newer best.ckpt, which the resumed run writes again.
        """
        files = {path.relative_to(self.folder).as_posix(): path for path in self._files()}
        taken: dict[str, tuple[Path, tuple[int, int]]] = {}
        try:
            for place in sorted(files, key=_late_last, reverse=True):
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    self._take(place, files[place], taken)
            for place in sorted(taken, key=_late_last):
                still, state = taken[place]
                key = f"{self.prefix}/{place}"
                self.client.upload_file(str(still), self.bucket, key)
                self.ours[place] = self.client.head_object(Bucket=self.bucket, Key=key)["ETag"]
                self.states[place] = state
        finally:
            for still, _ in taken.values():
                still.unlink(missing_ok=True)
        for place in [place for place in self.ours if place not in files]:
            self.client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{place}")
            del self.ours[place]
        if taken:
            self._write_ledger()

    def _take(self, place: str, file: Path, taken: dict[str, tuple[Path, tuple[int, int]]]) -> None:
        """A second name for the state of a changed file, whose first name may be given to a new one meanwhile."""
        if self.states.get(place) == _state(file):
            return
        still = file.with_name(f".{file.name}.sent")
        still.unlink(missing_ok=True)
        os.link(file, still)
        taken[place] = still, _state(still)

    def _write_ledger(self) -> None:
        if self.folder.is_dir():
            self.ours.write()

    def _files(self) -> Iterator[Path]:
        for path in self.folder.rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(self.folder).parts)
            if path.is_file() and not hidden:
                yield path


def _late_last(place: str) -> tuple[int, str]:
    return (LATE.index(place) + 1 if place in LATE else 0, place)


def _state(file: Path) -> tuple[int, int]:
    known = file.stat()
    return known.st_size, known.st_mtime_ns


def _bucket_and_prefix(address: str) -> tuple[str, str]:
    bucket, prefix = split_folder(address, "run_dir")
    if not prefix:
        raise UserError(f"run_dir={address}: expected s3://bucket/folder.")
    return bucket, prefix
