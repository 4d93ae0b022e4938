"""Downloads that go on where they broke off, are checked, and are unpacked only within their folder."""

from __future__ import annotations

import errno
import hashlib
import shutil
import socket
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from http.client import HTTPException, InvalidURL
from pathlib import Path

from imgcls.errors import UserError
from imgcls.system.bars import byte_bar, with_bar
from imgcls.system.files import explain_os_errors

CHUNK = 1 << 20
ATTEMPTS = 5  # in a row that bring nothing
TIMEOUT = 20.0  # seconds without a byte
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP states that another try may find gone
LONGEST_WAIT = 60.0

Hashes = dict[str, str | None]


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch `url` into `target`, whole and checked, or not at all.

    What an earlier try left in `target.part` is gone on with, where the server can do that.

    Args:
        url: http or https; redirections are followed.
        target: the file; its folder is made.
        size: expected bytes, if known.
        md5: expected hash, if known; it guards against damage, not against malice.
        sha256: the same, and against both.
        wait: called with the seconds between two tries.

    Raises:
        UserError: it could not be fetched, or is not what was expected.
    """
    part = target.with_name(target.name + ".part")
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        continued = part.is_file() and part.stat().st_size > 0
        _fetch_patiently(url, part, wait)
        complaint = _complaint(part, size, {"md5": md5, "sha256": sha256})
        if complaint and continued:  # what lay there may have been the beginning of another file
            part.unlink()
            _fetch_patiently(url, part, wait)
            complaint = _complaint(part, size, {"md5": md5, "sha256": sha256})
        if complaint:
            part.unlink()
            raise UserError(f"{url} gave {complaint}: not the file that was expected. Try again.")
        part.replace(target)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip file into the new folder `folder`, which appears only when it is complete.

    Raises UserError for a damaged archive and for one that reaches outside its folder.
    """
    beside = folder.with_name(f".{folder.name}.unpacking")
    with explain_os_errors(folder):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            if zipfile.is_zipfile(archive):
                _unzip(archive, beside)
            else:
                _untar(archive, beside)
            beside.replace(folder)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # the decompressors raise zlib.error, LZMAError, RuntimeError and others
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise  # the disk's; a damaged archive leads to places that are none (EINVAL)
            raise UserError(f"{archive} cannot be unpacked: {error}. Remove it and start again.") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _untar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise UserError("Unpacking safely needs Python 3.11.4 or newer. Update Python, or unpack it by hand.")
    with tarfile.open(archive) as packed:
        # 'data' refuses paths and links that lead out of the folder, and devices
        packed.extractall(folder, members=with_bar(packed, None, f"unpacking {archive.name}"), filter="data")


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        for member in with_bar(members, len(members), f"unpacking {archive.name}"):
            if not (folder / member.filename).resolve().is_relative_to(folder.resolve()):
                raise zipfile.BadZipFile(f"{member.filename} lies outside of the archive's folder")
            packed.extract(member, folder)  # a link in a zip file is written as a plain file


def _fetch_patiently(url: str, part: Path, wait: Callable[[float], None]) -> None:
    """Fetch what is missing of `part`, again and again as long as that brings something or may bring it."""
    fruitless = 0
    while True:
        have = _size(part)
        try:
            return _fetch(url, part)
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError, ValueError) as error:
            fruitless = 1 if _size(part) > have else fruitless + 1
            if fruitless == ATTEMPTS or not _may_pass(error):
                raise UserError(f"{url} cannot be reached ({_reason(error)}).") from error
            wait(_pause(error, fruitless))


def _fetch(url: str, part: Path) -> None:
    have = _size(part)
    headers = {"User-Agent": "imgcls", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers | ({"Range": f"bytes={have}-"} if have else {}))
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: there is nothing behind what is here
            raise
        if error.headers.get("Content-Range", f"bytes */{have}").endswith(f"/{have}"):
            return
        part.unlink()  # more than there should be: another file
        raise ConnectionError("the file there has changed") from error
    with answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        length = answer.headers.get("Content-Length")
        start = have if goes_on else 0
        total = int(length) + start if length else None
        with (
            byte_bar(f"downloading {url.rpartition('/')[2]}", total, start) as bar,
            part.open("ab" if goes_on else "wb") as file,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            if total is not None and file.tell() < total:
                raise ConnectionError(f"the connection broke off after {file.tell():,} of {total:,} bytes")


def _may_pass(error: Exception) -> bool:
    """Whether another try may succeed: not where the address is wrong, there is no network, or the server says no."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in PASSING
    if isinstance(error, InvalidURL) or type(error) is ValueError:
        return False
    return not isinstance(getattr(error, "reason", None), socket.gaierror | ssl.SSLCertVerificationError | str)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}, {error.reason}"
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason) or type(reason).__name__


def _pause(error: Exception, fruitless: int) -> float:
    """Seconds before the next try: what the server asks for, or 1, 2, 4, 8."""
    asked = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    return min(float(asked) if asked.isdigit() else 2.0 ** (fruitless - 1), LONGEST_WAIT)


def _complaint(part: Path, size: int | None, hashes: Hashes) -> str | None:
    """What is wrong with the file, if anything."""
    if size is not None and _size(part) != size:
        return f"{_size(part):,} bytes instead of {size:,}"
    for name, expected in hashes.items():
        if expected is not None:
            with part.open("rb") as file:
                found = hashlib.file_digest(file, name).hexdigest()
            if found != expected.lower():
                return f"a file with another {name} ({found} instead of {expected})"
    return None


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
