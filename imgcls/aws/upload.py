"""A folder of this machine kept in S3: only what is new or changed is sent."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imgcls.aws.refusals import refusals_explained
from imgcls.aws.s3 import split_uri
from imgcls.errors import UserError
from imgcls.system.cache import alone, cache_folder
from imgcls.system.files import atomic_write_text

log = logging.getLogger(__name__)

WORKERS = 16  # uploads at a time: they wait for the network
DELETED_AT_A_TIME = 1000  # what DeleteObjects takes


@dataclass(frozen=True)
class _File:
    place: str
    """Below the folder, with slashes."""
    path: Path
    size: int
    changed: int
    """ns"""


@dataclass(frozen=True)
class Upload:
    """What was done."""

    files: int
    sent: int
    removed: int
    bytes: int
    """Of all files."""


def place_of(folder: Path) -> str:
    """The name in S3 of a folder of this machine: readable, and another one for another folder or machine.

    The same pictures under another path are sent again; folders of different people never overwrite each other.
    """
    folder = folder.resolve()
    digest = hashlib.sha256(f"{socket.gethostname()}:{os.getuid()}:{folder}".encode()).hexdigest()[:8]
    return f"{folder.name or 'data'}-{digest}"


def send(folder: Path, uri: str, client: Any, *, extra: Mapping[str, str] | None = None, title: str = "") -> Upload:
    """Make `uri` hold what is in `folder`: send what is new or changed there, remove what is gone here.

    What was sent before is known from a ledger in the cache; without it, from the hashes that S3 has. An interrupted
    call is gone on with.

    Args:
        folder: its hidden files are left out.
        uri: s3://bucket/prefix, which belongs to this folder alone.
        client: a boto3 client of S3.
        extra: arguments of each upload, as for encryption.
        title: what is said to be sent.

    Raises:
        UserError: the folder is empty, or S3 refuses.
    """
    bucket, prefix = split_uri(uri)
    files = {file.place: file for file in _files(folder)}
    if not files:
        raise UserError(f"{folder} holds no files that could be uploaded.")
    ledger_file = cache_folder() / "uploads" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json"
    with alone(ledger_file), refusals_explained(f"upload {title or folder} to {uri}"):
        there = _listed(client, bucket, prefix)
        ledger = _read(ledger_file)
        gone = [f"{prefix}/{place}" for place in there if place not in files]
        for start in range(0, len(gone), DELETED_AT_A_TIME):
            names = [{"Key": key} for key in gone[start : start + DELETED_AT_A_TIME]]
            client.delete_objects(Bucket=bucket, Delete={"Objects": names, "Quiet": True})
        new = [file for file in files.values() if not _is_there(file, there, ledger)]
        total = sum(file.size for file in files.values())
        log.info("%s: %d of %d files are sent to %s.", title or folder, len(new), len(files), uri)
        try:
            _send_all(client, bucket, prefix, new, ledger, dict(extra or {}), title or folder.name)
        finally:
            kept = {place: entry for place, entry in ledger.items() if place in files}
            atomic_write_text(ledger_file, json.dumps(kept))
    return Upload(len(files), len(new), len(gone), total)


def _files(folder: Path) -> Iterator[_File]:
    for place, names, inside in os.walk(folder, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(inside):
            path = Path(place) / name
            if name.startswith(".") or not path.is_file():
                continue
            known = path.stat()
            yield _File(path.relative_to(folder).as_posix(), path, known.st_size, known.st_mtime_ns)


def _listed(client: Any, bucket: str, prefix: str) -> dict[str, tuple[str, int]]:
    """Place to (hash, size) of what is in S3."""
    found = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for one in page.get("Contents", ()):
            found[one["Key"].removeprefix(f"{prefix}/")] = (one["ETag"].strip('"'), int(one["Size"]))
    return found


def _read(ledger_file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(ledger_file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_there(file: _File, there: Mapping[str, tuple[str, int]], ledger: dict[str, list[Any]]) -> bool:
    if file.place not in there or there[file.place][1] != file.size:
        return False
    tag = there[file.place][0]
    if ledger.get(file.place) == [file.size, file.changed, tag]:
        return True
    if "-" not in tag and hashlib.md5(file.path.read_bytes(), usedforsecurity=False).hexdigest() == tag:
        ledger[file.place] = [file.size, file.changed, tag]
        return True
    return False


def _send_all(
    client: Any,
    bucket: str,
    prefix: str,
    new: list[_File],
    ledger: dict[str, list[Any]],
    extra: dict[str, str],
    title: str,
) -> None:
    lock = threading.Lock()

    def send_one(file: _File) -> int:
        key = f"{prefix}/{file.place}"
        client.upload_file(str(file.path), bucket, key, ExtraArgs=extra or None)
        tag = client.head_object(Bucket=bucket, Key=key)["ETag"].strip('"')
        with lock:
            ledger[file.place] = [file.size, file.changed, tag]
        return file.size

    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="imgcls-upload")
    total = sum(file.size for file in new)
    try:
        hidden = not sys.stderr.isatty()
        with tqdm(total=total, unit="B", unit_scale=True, desc=f"uploading {title}", disable=hidden) as bar:
            for size in pool.map(send_one, new):
                bar.update(size)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def send_file(file: Path, uri: str, client: Any, *, extra: Mapping[str, str] | None = None) -> bool:
    """Make `uri` hold the content of `file`; whether it had to be sent. Raises UserError."""
    bucket, key = split_uri(uri)
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    with refusals_explained(f"upload {file} to {uri}"):
        try:
            there = client.head_object(Bucket=bucket, Key=key)["Metadata"].get("sha256")
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey", "403"):
                raise
            there = None
        if there == digest:
            return False
        log.info("%s is sent to %s.", file, uri)
        client.upload_file(str(file), bucket, key, ExtraArgs={**(extra or {}), "Metadata": {"sha256": digest}})
    return True
