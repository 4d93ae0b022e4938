"""Uploads of local folders and files to S3: only what is new or changed is sent."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.aws.owner import owned_name
from imgcls.aws.refusals import error_code, explain_refusals
from imgcls.aws.s3 import Ledger, StoredFile, delete_files, list_objects, split_folder, split_uri, transfer
from imgcls.errors import UserError
from imgcls.system.cache import alone, cache_folder
from imgcls.system.files import sha256_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    path: str
    """Path relative to the folder."""
    source: Path
    size: int
    """Size in bytes."""
    modified: int
    """Modification time in ns."""


@dataclass(frozen=True)
class Upload:
    """Number of files that an upload sent to S3, and deleted there."""

    sent: int
    removed: int


def upload_name(folder: Path, caller: str) -> str:
    """The name in S3 of a local folder, see `imgcls.aws.owner`.

    The same images under another path are uploaded again, but users never overwrite each other's folders.
    """
    return owned_name(folder, caller, lambda: _listing(folder))


def _listing(folder: Path) -> str:
    """A digest of the names and sizes of the files in a folder."""
    return hashlib.sha256(repr([(file.path, file.size) for file in _files(folder)]).encode()).hexdigest()


def upload_folder(
    folder: Path, uri: str, client: Any, *, extra: Mapping[str, str] | None = None, title: str = ""
) -> Upload:
    """Make `uri` a copy of `folder`: upload what is new or changed, delete in S3 what was removed here.

    Earlier uploads are known from a ledger in the cache; without it, from the hashes in S3. The next call resumes an
    interrupted one.

    Args:
        folder: its hidden files are left out.
        uri: s3://bucket/prefix, used for this folder only.
        client: a boto3 client of S3.
        extra: arguments of each upload, such as those for encryption.
        title: name of the upload in messages.

    Raises:
        UserError: the folder is empty, or S3 refuses.
    """
    bucket, prefix = split_folder(uri)
    files = {file.path: file for file in _files(folder)}
    if not files:
        raise UserError(f"{folder} holds no files to upload.")
    ledger_file = cache_folder() / "uploads" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json"
    with alone(ledger_file), explain_refusals(f"upload {title or folder} to {uri}"):
        remote = {stored.path: stored for stored in list_objects(client, uri)}
        ledger = Ledger(ledger_file)
        deleted = [stored for path, stored in remote.items() if path not in files]
        delete_files(client, deleted)
        new = [file for file in files.values() if not _is_current(file, remote.get(file.path), ledger)]
        log.info("%s: uploading %s of %s files to %s.", title or folder, f"{len(new):,}", f"{len(files):,}", uri)

        def upload(file: _File) -> None:
            key = f"{prefix}/{file.path}"
            client.upload_file(str(file.source), bucket, key, ExtraArgs=dict(extra or {}))
            ledger[file.path] = _entry(file, client.head_object(Bucket=bucket, Key=key)["ETag"])

        try:
            transfer(new, upload, f"uploading {title or folder.name}")
        finally:
            for path in [path for path in ledger if path not in files]:
                del ledger[path]
            ledger.write()
    return Upload(len(new), len(deleted))


def _files(folder: Path) -> Iterator[_File]:
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            if not name.startswith(".") and path.is_file():
                status = path.stat()
                yield _File(path.relative_to(folder).as_posix(), path, status.st_size, status.st_mtime_ns)


def _is_current(file: _File, stored: StoredFile | None, ledger: Ledger) -> bool:
    if stored is None or stored.size != file.size:
        return False
    entry = _entry(file, stored.etag)
    if ledger.get(file.path) == entry:
        return True
    if "-" in stored.etag or hashlib.md5(file.source.read_bytes(), usedforsecurity=False).hexdigest() != entry[-1]:
        return False  # a hyphen marks the hash of a multipart upload
    ledger[file.path] = entry
    return True


def _entry(file: _File, etag: str) -> list[Any]:
    return [file.size, file.modified, etag.strip('"')]


def upload_file(file: Path, uri: str, client: Any, *, extra: Mapping[str, str] | None = None) -> bool:
    """Make `uri` a copy of `file`; return whether it had to be uploaded. Raises UserError."""
    bucket, key = split_uri(uri)
    digest = sha256_of(file)
    with explain_refusals(f"upload {file} to {uri}"):
        try:
            stored_digest = client.head_object(Bucket=bucket, Key=key)["Metadata"].get("sha256")
        except client.exceptions.ClientError as error:
            if error_code(error) not in ("404", "NoSuchKey", "403"):
                raise
            stored_digest = None
        if stored_digest == digest:
            return False
        log.info("Uploading %s to %s.", file, uri)
        client.upload_file(str(file), bucket, key, ExtraArgs={**(extra or {}), "Metadata": {"sha256": digest}})
    return True
