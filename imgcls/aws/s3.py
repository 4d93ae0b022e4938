"""S3: addresses, clients, the objects of a folder, transfers of many files, and ledgers of what was transferred."""

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
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")  # also the long names that S3 once allowed
WORKERS = 16  # transfers at a time: they wait for the network, not for the processor


class HasSize(Protocol):
    """A file to transfer."""

    @property
    def size(self) -> int:
        """Bytes."""


F = TypeVar("F", bound=HasSize)


@dataclass(frozen=True)
class StoredFile:
    """An object of a folder in S3."""

    bucket: str
    key: str
    place: str
    """Below the folder, with slashes."""
    size: int
    """Bytes."""
    etag: str
    """Changes with the content; in double quotes, as S3 gives it."""
    modified: datetime


class Ledger(dict[str, Any]):
    """What is known of each file, by its place; kept in a file of JSON, without which, or damaged, it is empty."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(file.read_text(encoding="utf-8"))
            super().__init__(content if isinstance(content, dict) else {})

    def write(self) -> None:
        """Replace the file, whole or not at all."""
        atomic_write_text(self.file, json.dumps(self))


def is_remote(place: object) -> bool:
    """Whether `place` is an address in S3."""
    return isinstance(place, str) and place.startswith(SCHEME)


def split_uri(uri: str, option: str | None = None) -> tuple[str, str]:
    """Bucket and key of s3://bucket/key; the key may be empty.

    Raises UserError, which names the `option` that holds the address, where it is none.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not is_remote(uri) or not BUCKET.fullmatch(bucket):
        raise _no_address(uri, option)
    return bucket, key


def split_folder(uri: str, option: str | None = None) -> tuple[str, str]:
    """Bucket and prefix, without slashes at its ends, of an address that is used as a folder.

    >>> split_folder("s3://bucket/a/b/"), split_folder("s3://bucket")
    (('bucket', 'a/b'), ('bucket', ''))

    Raises UserError as `split_uri`, and for prefixes that are no folder's path.
    """
    bucket, key = split_uri(uri, option)
    prefix = key.strip("/")
    if prefix and not _is_path(prefix):
        raise _no_address(uri, option)
    return bucket, prefix


def make_client(option: str) -> Any:
    """A client from the environment, with boto3 imported. Raises UserError where the `option` lacks boto3."""
    boto3 = need("boto3", "s3", option)
    return boto3.client("s3", config=client_config())


def client_config() -> Any:
    """How clients of AWS connect and retry."""
    return import_module("botocore.config").Config(max_pool_connections=WORKERS, retries={"mode": "standard"})


def list_objects(client: Any, uri: str) -> Iterator[StoredFile]:
    """The objects of a folder and its folders, but none that stands for an empty folder.

    Raises UserError for a key that is no place in a folder, such as one that leads out of it.
    """
    bucket, prefix = split_folder(uri)
    start = f"{prefix}/" if prefix else ""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
        for entry in page.get("Contents", ()):
            key, place = entry["Key"], entry["Key"].removeprefix(start)
            if key.endswith("/"):
                continue
            if not _is_path(place):
                raise UserError(f"{SCHEME}{bucket}/{key} cannot be a file in a folder. Rename it.")
            yield StoredFile(bucket, key, place, int(entry["Size"]), entry["ETag"], entry["LastModified"])


def fetch_file(client: Any, stored: StoredFile, target: Path) -> None:
    """Download to `target`, whole or not at all, with the time of change that it has in S3; its folder is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    client.download_file(stored.bucket, stored.key, str(part))
    os.utime(part, (stored.modified.timestamp(), stored.modified.timestamp()))
    part.replace(target)


def transfer(files: Sequence[F], move: Callable[[F], None], title: str, workers: int = WORKERS) -> None:
    """Call `move` for each of `files`, up to `workers` at a time, with a bar of bytes; the first error ends it."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="imgcls-s3")
    try:
        with byte_bar(title, sum(file.size for file in files)) as bar:
            for file, _ in zip(files, pool.map(move, files), strict=True):
                bar.update(file.size)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _is_path(place: str) -> bool:
    return "\0" not in place and not any(part in ("", ".", "..") for part in place.split("/"))


def _no_address(uri: str, option: str | None) -> UserError:
    return UserError(f"{f'{option}=' if option else ''}{uri}: expected s3://bucket/folder.")
