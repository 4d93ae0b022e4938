"""Downloads that go on where they broke off, are checked, and are unpacked only within their folder."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from imgcls.errors import UserError
from imgcls.files import explain_os_errors

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 20.0  # seconds without a byte


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch `url` into `target`, whole and checked, or not at all.

    What an earlier try left in `target.part` is gone on with, where the server can do that.

    Args:
        url: http or https.
        target: the file; its folder is made.
        size: expected bytes, if known.
        md5: expected hash, if known; it guards against damage, not against malice.
        wait: called with the seconds between two tries.

    Raises:
        UserError: it could not be fetched, or is not what was expected.
    """
    part = target.with_name(target.name + ".part")
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(ATTEMPTS):
            try:
                _fetch(url, part)
                break
            except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
                reason = getattr(error, "reason", None) or error
                final = isinstance(error, urllib.error.HTTPError) and error.code not in (408, 429, 500, 502, 503, 504)
                no_network = "Name or service not known" in str(reason) or "name resolution" in str(reason)
                if final or no_network or attempt == ATTEMPTS - 1:
                    code = f"HTTP {error.code}, " if isinstance(error, urllib.error.HTTPError) else ""
                    raise UserError(f"{url} cannot be reached ({code}{reason}).") from error
                wait(min(2.0**attempt, 30.0))
        _check(part, url, size, md5)
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
                with tarfile.open(archive) as tar:
                    tar.extractall(beside, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise UserError(f"{archive} cannot be unpacked: {error}. Remove it and start again.") from error
        beside.replace(folder)


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            if not (folder / member.filename).resolve().is_relative_to(folder.resolve()):
                raise zipfile.BadZipFile(f"{member.filename} lies outside of the archive's folder")
        packed.extractall(folder)


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the file there is another one: the check tells
            return
        raise
    with answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        length = answer.headers.get("Content-Length")
        total = int(length) + (have if goes_on else 0) if length else None
        bar = tqdm(
            total=total,
            initial=have if goes_on else 0,
            unit="B",
            unit_scale=True,
            desc=f"downloading {url.rpartition('/')[2]}",
            disable=not sys.stderr.isatty(),
        )
        with bar, part.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            if total is not None and file.tell() < total:
                raise ConnectionError(f"the connection broke off after {file.tell()} of {total} bytes")


def _check(part: Path, url: str, size: int | None, md5: str | None) -> None:
    found = part.stat().st_size
    if size is not None and found != size:
        part.unlink()
        raise UserError(f"{url} gave {found} bytes instead of {size}: not the file that was expected. Try again.")
    if md5 is not None:
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != md5:
            part.unlink()
            raise UserError(f"{url} gave a file with another hash ({digest}, not {md5}). Try again.")
