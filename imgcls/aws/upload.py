"""A folder of this machine kept in S3: only what is new or changed is sent."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import Ledger, StoredFile, list_objects, split_folder, split_uri, transfer
from imgcls.errors import UserError
from imgcls.system.cache import alone, cache_folder

log = logging.getLogger(__name__)

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
    call is resumed by the next one.

    Args:
        folder: its hidden files are left out.
        uri: s3://bucket/prefix, which belongs to this folder alone.
        client: a boto3 client of S3.
        extra: arguments of each upload, as for encryption.
        title: what is said to be sent.

    Raises:
        UserError: the folder is empty, or S3 refuses.
    """
    bucket, prefix = split_folder(uri)
    files = {file.place: file for file in _files(folder)}
    if not files:
        raise UserError(f"{folder} holds no files that could be uploaded.")
    ledger_file = cache_folder() / "uploads" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json"
    with alone(ledger_file), explain_refusals(f"upload {title or folder} to {uri}"):
        there = {stored.place: stored for stored in list_objects(client, uri)}
        ledger = Ledger(ledger_file)
        gone = [stored.key for place, stored in there.items() if place not in files]
        for start in range(0, len(gone), DELETED_AT_A_TIME):
            names = [{"Key": key} for key in gone[start : start + DELETED_AT_A_TIME]]
            client.delete_objects(Bucket=bucket, Delete={"Objects": names, "Quiet": True})
        new = [file for file in files.values() if not _is_current(file, there.get(file.place), ledger)]
        total = sum(file.size for file in files.values())
        log.info("%s: %d of %d files are sent to %s.", title or folder, len(new), len(files), uri)

        def upload(file: _File) -> None:
            key = f"{prefix}/{file.place}"
            client.upload_file(str(file.path), bucket, key, ExtraArgs=dict(extra or {}))
            ledger[file.place] = _entry(file, client.head_object(Bucket=bucket, Key=key)["ETag"])

        try:
            transfer(new, upload, f"uploading {title or folder.name}")
        finally:
            for place in [place for place in ledger if place not in files]:
                del ledger[place]
            ledger.write()
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


def _is_current(file: _File, stored: StoredFile | None, ledger: Ledger) -> bool:
    if stored is None or stored.size != file.size:
        return False
    entry = _entry(file, stored.etag)
    if ledger.get(file.place) == entry:
        return True
    if "-" in stored.etag or hashlib.md5(file.path.read_bytes(), usedforsecurity=False).hexdigest() != entry[-1]:
        return False  # with a hyphen it is a hash of the hashes of parts
    ledger[file.place] = entry
    return True


def _entry(file: _File, etag: str) -> list[Any]:
    return [file.size, file.changed, etag.strip('"')]


def send_file(file: Path, uri: str, client: Any, *, extra: Mapping[str, str] | None = None) -> bool:
    """Make `uri` hold the content of `file`; whether it had to be sent. Raises UserError."""
    bucket, key = split_uri(uri)
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    with explain_refusals(f"upload {file} to {uri}"):
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
