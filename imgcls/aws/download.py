"""`data.root=s3://bucket/prefix`: kept as a folder in the cache that holds what the bucket holds.

boto3 is imported only here, and only when something is fetched.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imgcls.errors import UserError
from imgcls.system.cache import alone, cache_folder
from imgcls.system.files import atomic_write_text, explain_os_errors

log = logging.getLogger(__name__)

SCHEME = "s3://"
LEDGER = ".imgcls-remote.json"  # hidden, so that it is no picture
WORKERS = 8  # downloads at a time: they wait for the network, not for the processor


@dataclass(frozen=True)
class _Object:
    key: str
    place: str
    """Below the prefix."""
    size: int
    etag: str
    modified: datetime

    @property
    def version(self) -> list[Any]:
        return [self.etag, self.size]


def is_remote(root: str | Path | None) -> bool:
    """Whether `root` is an address in S3."""
    return isinstance(root, str) and root.startswith(SCHEME)


def local_root(root: str | Path | None, cache: Path | None = None) -> Path | None:
    """The folder of `root`: itself, or where `synchronise` is to put what is at an address. Fetches nothing."""
    if not is_remote(root):
        return Path(root).expanduser() if root is not None else None
    bucket, prefix = _parts(str(root))
    return (cache or cache_folder()) / "remote" / bucket / Path(*prefix.split("/"))


def synchronise(address: str, folder: Path, *, client: Any = None, workers: int = WORKERS) -> None:
    """Make `folder` hold what is at `address`: fetch what is new or changed, remove what is gone there.

    An interrupted call is gone on with; of several processes one works and the others wait. Files get the time of
    change that they have in the bucket, so a store of decoded pixels stays valid.

    Args:
        address: s3://bucket/prefix.
        folder: written by this function alone.
        client: a boto3 client of S3; made from the environment if None.
        workers: downloads at a time.

    Raises:
        UserError: no access, no such bucket, nothing there, no network, no boto3.
    """
    with alone(folder), _explained(address):
        client = client or _client()
        wanted = {one.place: one for one in _listed(client, address)}
        if not wanted:
            raise UserError(f"data.root={address}: there is nothing at this address.")
        ledger = _Ledger(folder / LEDGER)
        for place in [place for place in ledger.versions if place not in wanted]:
            _remove(folder, place)
            del ledger.versions[place]
        missing = [one for one in wanted.values() if not _is_there(folder, one, ledger)]
        log.info("%s: %d of %d files are fetched to %s.", address, len(missing), len(wanted), folder)
        try:
            _fetch_all(client, _parts(address)[0], missing, folder, ledger, workers)
        finally:
            ledger.write()


class _Ledger:
    """Which version of each file is in the folder."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.versions: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            self.versions = json.loads(file.read_text())

    def write(self) -> None:
        atomic_write_text(self.file, json.dumps(self.versions))


def _listed(client: Any, address: str) -> Iterator[_Object]:
    bucket, prefix = _parts(address)
    start = f"{prefix}/" if prefix else ""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
        for found in page.get("Contents", ()):
            key = found["Key"]
            if key.endswith("/"):
                continue  # what stands for an empty folder
            place = key.removeprefix(start)
            if any(part in ("", ".", "..") for part in place.split("/")) or "\0" in place:
                raise UserError(f"{SCHEME}{bucket}/{key} cannot be a file in a folder. Rename it.")
            yield _Object(key, place, int(found["Size"]), found["ETag"], found["LastModified"])


def _is_there(folder: Path, one: _Object, ledger: _Ledger) -> bool:
    try:
        return ledger.versions.get(one.place) == one.version and (folder / one.place).stat().st_size == one.size
    except OSError:
        return False


def _fetch_all(client: Any, bucket: str, missing: list[_Object], folder: Path, ledger: _Ledger, workers: int) -> None:
    total = sum(one.size for one in missing)
    title = f"fetching {len(missing):,} files from {bucket}"
    lock = threading.Lock()

    def fetch(one: _Object) -> int:
        target = folder / one.place
        part = target.with_name(f".{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, one.key, str(part))
        os.utime(part, (one.modified.timestamp(), one.modified.timestamp()))
        part.replace(target)
        with lock:
            ledger.versions[one.place] = one.version
        return one.size

    pool = ThreadPoolExecutor(workers, thread_name_prefix="imgcls-fetch")
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc=title, disable=not sys.stderr.isatty()) as bar:
            for size in pool.map(fetch, missing):
                bar.update(size)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _remove(folder: Path, place: str) -> None:
    file = folder / place
    file.unlink(missing_ok=True)
    for parent in file.relative_to(folder).parents[:-1]:
        with contextlib.suppress(OSError):  # not empty
            (folder / parent).rmdir()


def _client() -> Any:
    try:
        boto3, config = import_module("boto3"), import_module("botocore.config")
    except ImportError as error:
        raise UserError("data.root=s3://… needs boto3. Install it with pip install 'imgcls[s3]'.") from error
    return boto3.client("s3", config=config.Config(max_pool_connections=WORKERS, retries={"mode": "standard"}))


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """What boto3 raises, as one line."""
    try:
        with explain_os_errors(Path(address)):
            yield
    except Exception as error:
        if not type(error).__module__.startswith(("botocore", "boto3", "s3transfer")):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.root={address} cannot be read ({reason}). Check the address, the network, and your AWS credentials."
        ) from error


def _parts(address: str) -> tuple[str, str]:
    """Bucket and prefix, without slashes at its ends."""
    bucket, _, prefix = address.removeprefix(SCHEME).partition("/")
    prefix = prefix.strip("/")
    if not bucket or any(part in (".", "..") for part in (bucket, *prefix.split("/"))) or "//" in prefix:
        raise UserError(f"data.root={address}: expected s3://bucket/prefix.")
    return bucket, prefix
