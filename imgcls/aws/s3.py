"""S3: addresses, clients, listings, parallel transfers, and ledgers of transferred files."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from imgcls.errors import UserError
from imgcls.system.bars import byte_bar
from imgcls.system.extras import need
from imgcls.system.files import atomic_write_text

SCHEME = "s3://"
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")  # includes the long names that S3 once allowed
DELETE_BATCH = 1000  # maximum number of keys of DeleteObjects
WORKERS = 16  # parallel transfers; they wait for the network, not for the CPU


class HasSize(Protocol):
    """A file to transfer."""

    @property
    def size(self) -> int:
        """Size in bytes."""


F = TypeVar("F", bound=HasSize)


@dataclass(frozen=True)
class StoredFile:
    """An object of a folder in S3."""

    bucket: str
    key: str
    path: str
    """Path relative to the folder."""
    size: int
    """Size in bytes."""
    etag: str
    """Changes with the content; in double quotes, as S3 returns it."""
    modified: datetime


class Ledger(dict[str, Any]):
    """Information on files by path, stored as JSON; empty if the JSON file is missing or damaged."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(file.read_text(encoding="utf-8"))
            super().__init__(content if isinstance(content, dict) else {})

    def write(self) -> None:
        """Replace the JSON file atomically."""
        atomic_write_text(self.file, json.dumps(self))


def is_remote(path: object) -> bool:
    """Whether `path` is an address in S3."""
    return isinstance(path, str) and path.startswith(SCHEME)


def split_uri(uri: str, option: str | None = None) -> tuple[str, str]:
    """Bucket and key of s3://bucket/key; the key may be empty.

    Raises UserError, which names the `option`, if `uri` is not such an address.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not is_remote(uri) or not BUCKET.fullmatch(bucket):
        raise _invalid_address(uri, option)
    return bucket, key


def split_folder(uri: str, option: str | None = None) -> tuple[str, str]:
    """Bucket and prefix, without leading and trailing slashes, of the address of a folder.

    >>> split_folder("s3://bucket/a/b/"), split_folder("s3://bucket")
    (('bucket', 'a/b'), ('bucket', ''))

    Raises UserError as `split_uri`, and for prefixes that are not a valid path.
    """
    bucket, key = split_uri(uri, option)
    prefix = key.strip("/")
    if prefix and not _is_path(prefix):
        raise _invalid_address(uri, option)
    return bucket, prefix


def make_client(option: str) -> Any:
    """A client from the environment. Raises UserError if boto3, which `option` needs, is missing."""
    boto3 = need("boto3", "s3", option)
    return boto3.client("s3", config=client_config())


def client_config() -> Any:
    """The connection and retry settings of AWS clients."""
    return import_module("botocore.config").Config(max_pool_connections=WORKERS, retries={"mode": "standard"})


def list_objects(client: Any, uri: str) -> Iterator[StoredFile]:
    """The objects of a folder and its subfolders, except placeholders of empty folders.

    Raises UserError for a key that is not a valid path, such as one that leads out of the folder.
    """
    bucket, prefix = split_folder(uri)
    start = f"{prefix}/" if prefix else ""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
        for entry in page.get("Contents", ()):
            key, path = entry["Key"], entry["Key"].removeprefix(start)
            if key.endswith("/"):
                continue
            if not _is_path(path):
                raise UserError(f"{SCHEME}{bucket}/{key} cannot be a file in a folder. Rename it.")
            yield StoredFile(bucket, key, path, int(entry["Size"]), entry["ETag"], entry["LastModified"])


def delete_files(client: Any, files: Sequence[StoredFile]) -> None:
    """Delete objects of one bucket."""
    for start in range(0, len(files), DELETE_BATCH):
        keys = [{"Key": stored.key} for stored in files[start : start + DELETE_BATCH]]
        client.delete_objects(Bucket=files[0].bucket, Delete={"Objects": keys, "Quiet": True})


def fetch_file(client: Any, stored: StoredFile, target: Path) -> None:
    """Download to `target` atomically, with the modification time of the object; its folder is created."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    client.download_file(stored.bucket, stored.key, str(part))
    os.utime(part, (stored.modified.timestamp(), stored.modified.timestamp()))
    part.replace(target)


def transfer(files: Sequence[F], move: Callable[[F], None], title: str, workers: int = WORKERS) -> None:
    """Call `move` for each file, up to `workers` at a time, with a progress bar; the first error ends it."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="imgcls-s3")
    try:
        with byte_bar(title, sum(file.size for file in files)) as bar:
            for file, _ in zip(files, pool.map(move, files), strict=True):
                bar.update(file.size)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _is_path(text: str) -> bool:
    return "\0" not in text and not any(part in ("", ".", "..") for part in text.split("/"))


def _invalid_address(uri: str, option: str | None) -> UserError:
    return UserError(f"{f'{option}=' if option else ''}{uri}: expected s3://bucket/folder.")
