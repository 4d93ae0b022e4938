"""Downloads that resume after an interruption, are checked, and are unpacked within their folder only."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any, TypeVar

from imgcls.errors import UserError
from imgcls.runs.provenance import hide_secrets
from imgcls.system.bars import byte_bar
from imgcls.system.files import explain_os_errors
from imgcls.system.machine import spare_disk
from imgcls.system.unpacking import extract

T = TypeVar("T")
CHUNK_BYTES = 1 << 20
ATTEMPTS = 5  # in a row without progress
TIMEOUT_SECONDS = 20.0  # without a byte
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
MAX_WAIT_SECONDS = 60.0


class MissingFileError(UserError):
    """There is no such file where it is fetched from."""


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    wait: Callable[[float], None] = time.sleep,
    headers: Mapping[str, str] | None = None,
    bar: bool = True,
) -> None:
    """Download `url` to `target`, complete and checked, or not at all.

    Resumes an earlier download in `target.part` if the server supports it.

    Args:
        url: http or https; redirections are followed.
        target: the file; its folder is created.
        size: expected size, bytes.
        md5: expected hash; protects from damage, but not from malice.
        sha256: expected hash; protects from both.
        wait: called with the seconds to wait between two attempts.
        headers: of the request, such as a token; not sent to where the server redirects.
        bar: show the progress.

    Raises:
        MissingFileError: the server has no such file.
        UserError: the file cannot be downloaded, or is not the expected one.
    """
    part = target.with_name(target.name + ".part")
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        attempts = 2 if _size(part) else 1  # the existing part may be the beginning of another file
        for _ in range(attempts):
            _with_retries(url, lambda: _fetch(url, part, headers or {}, bar), lambda: _size(part), wait)
            if not (mismatch := _explain_mismatch(part, size, {"md5": md5, "sha256": sha256})):
                part.replace(target)
                return
            part.unlink()
        raise UserError(f"{public_address(url)} is not the expected file: it has {mismatch}. Try again.")


def public_address(url: str) -> str:
    """`url` without its query and its password, which may be secrets: for messages and names of files.

    >>> public_address("https://user:secret@host/a.zip?X-Amz-Signature=0f3a")
    'https://…@host/a.zip'
    """
    return hide_secrets(re.split("[?#]", url)[0])


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip file into the new `folder`, which exists only when it is complete.

    Raises UserError for an archive that `imgcls.system.unpacking` refuses, and where the disk has no room.
    """
    beside = folder.with_name(f".{folder.name}.unpacking")
    with explain_os_errors(folder):
        shutil.rmtree(beside, ignore_errors=True)
        try:
            extract(archive, beside, room=spare_disk(folder))
            beside.replace(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def read_range(
    url: str,
    start: int,
    size: int,
    *,
    headers: Mapping[str, str] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> bytes:
    """`size` bytes of the file at `url`, from byte `start` on. Raises MissingFileError, UserError; see `download`."""

    def read() -> bytes:
        with _open(url, headers or {}, f"bytes={start}-{start + size - 1}") as answer:
            content: bytes = answer.read(size) if answer.status == 206 else answer.read()[start : start + size]
        if len(content) < size:
            raise ConnectionError(f"the connection was lost after {len(content):,} of {size:,} bytes")
        return content

    return _with_retries(url, read, lambda: 0, wait)


def _with_retries(url: str, attempt: Callable[[], T], progress: Callable[[], int], wait: Callable[[float], None]) -> T:
    """`attempt()`, with new attempts as long as they make, in bytes of `progress`, or may make progress."""
    failures = 0
    while True:
        size = progress()
        try:
            return attempt()
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError, ValueError) as error:
            failures = 1 if progress() > size else failures + 1
            if failures < ATTEMPTS and _is_transient(error):
                wait(_pause_seconds(error, failures))
                continue
            if isinstance(error, urllib.error.HTTPError) and error.code in (404, 410):
                raise MissingFileError(f"{public_address(url)} cannot be reached ({_reason(error)}).") from error
            raise UserError(f"{public_address(url)} cannot be reached ({_reason(error)}).") from error


def _open(url: str, headers: Mapping[str, str], byte_range: str = "") -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "imgcls", "Accept-Encoding": "identity"})
    if byte_range:
        request.add_header("Range", byte_range)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    return _http().open(request, timeout=TIMEOUT_SECONDS)


def _fetch(url: str, part: Path, headers: Mapping[str, str], show_bar: bool) -> None:
    start = _size(part)
    try:
        answer = _open(url, headers, f"bytes={start}-" if start else "")
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:  # 416: there are no bytes after `start`
            raise
        if error.headers.get("Content-Range", f"bytes */{start}").endswith(f"/{start}"):
            return
        part.unlink()  # longer than the file on the server: another file
        raise ConnectionError("the file on the server has changed") from error
    with answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        length = answer.headers.get("Content-Length")
        start = start if resumed else 0
        total = int(length) + start if length else None
        with (
            byte_bar(f"downloading {public_address(url).rpartition('/')[2]}", total, start, shown=show_bar) as bar,
            part.open("ab" if resumed else "wb") as file,
        ):
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
            if total is not None and file.tell() < total:
                raise ConnectionError(f"the connection was lost after {file.tell():,} of {total:,} bytes")


def _http() -> urllib.request.OpenerDirector:
    """Opens http and https, also where a server redirects to; other schemes such as file: and data: are errors."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _is_transient(error: Exception) -> bool:
    """Whether another attempt may succeed: not with a wrong address, without a network, or if the server refuses."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in TRANSIENT_STATUSES
    if isinstance(error, InvalidURL) or type(error) is ValueError:
        return False
    return not isinstance(getattr(error, "reason", None), socket.gaierror | ssl.SSLCertVerificationError | str)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}, {error.reason}"
    reason = getattr(error, "reason", None) or error
    return hide_secrets(str(getattr(reason, "strerror", None) or reason)) or type(reason).__name__


def _pause_seconds(error: Exception, failures: int) -> float:
    """The pause before the next attempt: as the server asks, or 1, 2, 4, 8 seconds."""
    requested = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    return min(float(requested) if requested.isdigit() else 2.0 ** (failures - 1), MAX_WAIT_SECONDS)


def _explain_mismatch(part: Path, size: int | None, hashes: dict[str, str | None]) -> str | None:
    """How the file differs from the expected one; None if it does not."""
    if size is not None and _size(part) != size:
        return f"{_size(part):,} bytes instead of {size:,}"
    for name, expected in hashes.items():
        if expected is not None:
            with part.open("rb") as file:
                found = hashlib.file_digest(file, name).hexdigest()
            if found != expected.lower():
                return f"another {name} ({found} instead of {expected})"
    return None


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
