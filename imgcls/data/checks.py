"""Looking at every picture of a data set once, and remembering what was seen.

The store finds bad files by itself while it decodes. This is for `imgcls.prepare`, which also wants to know formats,
sizes and duplicates. What was seen of a file is kept in the cache until its size or time of change differ.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import PIL
from PIL import Image

from imgcls.data.sources import BadFile
from imgcls.errors import UserError
from imgcls.pictures import BadPicture, decode
from imgcls.system.cache import cache_folder
from imgcls.system.files import atomic_path
from imgcls.system.machine import available_cores

THUMBNAIL = (8, 9)  # height, width: one column more than a difference hash has bits in a row
AT_ONCE = 32  # pictures that a thread takes at a time
_VERSION = f"1 {PIL.__version__}"  # another Pillow may read what this one cannot
_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "MPO": {".mpo", ".jpg", ".jpeg"},
    "PNG": {".png", ".apng"},
    "TIFF": {".tif", ".tiff"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".bmp", ".dib"},
    "AVIF": {".avif", ".avifs"},
    "HEIF": {".heic", ".heif", ".hif"},
    "JPEG2000": {".jp2", ".j2k"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
}


@dataclass(frozen=True, eq=False)
class Findings:
    """What was seen of N pictures, in their order."""

    reasons: list[str]
    """Why a picture cannot be used; '' where it can. The other fields mean nothing where it cannot."""
    formats: list[str]
    """Of the content: 'JPEG', 'PNG', …; '' for pixels that lie in no file."""
    sizes: np.ndarray
    """int64 (N, 2): width and height, px, upright."""
    digests: np.ndarray
    """uint64 (N, 2): a hash of the decoded pixels."""
    thumbnails: np.ndarray
    """uint8 (N, 8, 9, 3): the picture shrunk to that."""

    def __len__(self) -> int:
        return len(self.reasons)

    @classmethod
    def empty(cls, count: int) -> Findings:
        """Room for `count` pictures."""
        digests, sizes = np.zeros((count, 2), dtype=np.uint64), np.zeros((count, 2), dtype=np.int64)
        return cls([""] * count, [""] * count, sizes, digests, np.zeros((count, *THUMBNAIL, 3), dtype=np.uint8))

    def rows(self, rows: Sequence[int]) -> Findings:
        """Those `rows` alone."""
        at = np.asarray(rows, dtype=np.int64)
        reasons, formats = [self.reasons[row] for row in rows], [self.formats[row] for row in rows]
        return Findings(reasons, formats, self.sizes[at], self.digests[at], self.thumbnails[at])

    def followed_by(self, other: Findings) -> Findings:
        """These rows and then those of `other`."""
        sizes, digests = (np.concatenate(both) for both in ((self.sizes, other.sizes), (self.digests, other.digests)))
        thumbnails = np.concatenate((self.thumbnails, other.thumbnails))
        return Findings(self.reasons + other.reasons, self.formats + other.formats, sizes, digests, thumbnails)

    def copy_row(self, row: int, other: Findings, at: int) -> None:
        """Take row `at` of `other` as row `row`."""
        self.reasons[row], self.formats[row] = other.reasons[at], other.formats[at]
        self.sizes[row], self.digests[row], self.thumbnails[row] = (
            other.sizes[at],
            other.digests[at],
            other.thumbnails[at],
        )

    def look(self, row: int, picture: Path | np.ndarray) -> None:
        """Decode `picture` and fill row `row`."""
        try:
            image, self.formats[row] = decode(picture)
        except BadPicture as error:
            self.reasons[row] = error.reason
            return
        self.sizes[row] = image.size
        content = hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size)
        self.digests[row] = np.frombuffer(content.digest(), dtype=np.uint64)
        height, width = THUMBNAIL
        self.thumbnails[row] = image.resize((width, height), Image.Resampling.BOX, reducing_gap=3.0)


def inspect(pictures: Sequence[Path] | np.ndarray, cache: Path | None = None, workers: int | None = None) -> Findings:
    """Decode every picture and say what was seen, with a progress bar on a terminal.

    Args:
        pictures: files, or pixels uint8 (N, H, W, 3).
        cache: the folder where what was seen of files is kept; the user's cache folder if None.
        workers: threads, which Pillow does not hold up while it decodes; as many as cores if None.
    """
    findings = Findings.empty(len(pictures))
    if isinstance(pictures, np.ndarray):
        for _ in _look_at(findings, pictures, range(len(pictures)), workers):
            pass
        return findings
    if not pictures:
        return findings
    stamps = _stamps(pictures)
    memory = (cache or cache_folder()) / "checks" / f"{_key(pictures)}.npz"
    before = _recall(memory)
    known = _take_over(before, pictures, stamps, findings)
    unknown = np.flatnonzero(~known)
    try:
        for row in _look_at(findings, pictures, unknown.tolist(), workers):
            known[row] = True
    finally:  # an interrupted check goes on where it was
        if len(unknown):
            rows = np.flatnonzero(known).tolist()
            _remember(memory, before, _Seen([str(pictures[row]) for row in rows], stamps[rows], findings.rows(rows)))
    return findings


def remembered(pictures: Sequence[Path], cache: Path | None = None) -> int:
    """How many of `pictures` `inspect` has looked at before, and would not decode again."""
    if not pictures:
        return 0
    seen = _recall((cache or cache_folder()) / "checks" / f"{_key(pictures)}.npz")
    return int(_take_over(seen, pictures, _stamps(pictures), Findings.empty(len(pictures))).sum())


def mislabelled(paths: Sequence[Path], findings: Findings) -> list[tuple[Path, str]]:
    """(file, format) where the ending says another format than the content has; such files are read all the same."""
    pairs = zip(paths, findings.formats, strict=True)
    return [(path, kind) for path, kind in pairs if kind and path.suffix.lower() not in _suffixes(kind)]


def bad_as_csv(bad: Iterable[BadFile]) -> str:
    """A table of path and reason, for a file in the run folder."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(BadFile._fields)
    writer.writerows((os.fsencode(file.path).decode("utf-8", "backslashreplace"), file.reason) for file in bad)
    return table.getvalue()


def _suffixes(kind: str) -> set[str]:
    return _SUFFIXES.get(kind, {f".{kind.lower()}"})


def _look_at(
    findings: Findings, pictures: Sequence[Path] | np.ndarray, rows: Sequence[int], workers: int | None
) -> Iterator[int]:
    """Fill `rows` of `findings`, in threads; each row is given back when it is filled."""
    from imgcls.system.bars import with_bar

    def look(start: int) -> Sequence[int]:
        for row in (part := rows[start : start + AT_ONCE]):
            findings.look(row, pictures[row])
        return part

    pool = ThreadPoolExecutor(workers or available_cores(), thread_name_prefix="imgcls-check")
    try:
        filled = (row for part in pool.map(look, range(0, len(rows), AT_ONCE)) for row in part)
        yield from with_bar(filled, len(rows), f"Checking {len(rows):,} pictures")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _stamps(paths: Sequence[Path]) -> np.ndarray:
    """int64 (N, 2): size and time of change of each file; -1 where there is none."""

    def stamp(path: Path) -> tuple[int, int]:
        try:
            status = os.stat(path)  # noqa: PTH116 - 60,000 times
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    return np.array([stamp(path) for path in paths], dtype=np.int64).reshape(-1, 2)


def _key(paths: Sequence[Path]) -> str:
    """One memory for each folder that all of the files are in."""
    common = os.path.commonpath([os.path.abspath(path) for path in paths])  # noqa: PTH100
    return hashlib.blake2b(os.fsencode(common), digest_size=12).hexdigest()


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is kept: of each path its stamp and what was seen."""

    paths: list[str]
    stamps: np.ndarray
    findings: Findings


def _recall(memory: Path) -> _Seen:
    """What is in the file `memory`; nothing where it is damaged or was written with another version."""
    try:
        with np.load(memory, allow_pickle=False) as kept:
            words = json.loads(kept["words"].tobytes())
            if words["version"] == _VERSION:
                columns = (kept[name] for name in ("sizes", "digests", "thumbnails"))
                return _Seen(words["paths"], kept["stamps"], Findings(words["reasons"], words["formats"], *columns))
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        pass
    return _Seen([], np.zeros((0, 2), dtype=np.int64), Findings.empty(0))


def _take_over(seen: _Seen, paths: Sequence[Path], stamps: np.ndarray, findings: Findings) -> np.ndarray:
    """Fill the rows of files that are as they were when last seen; bool (N,): which."""
    known = np.zeros(len(paths), dtype=bool)
    places = {path: place for place, path in enumerate(seen.paths)}
    for row, path in enumerate(paths):
        place = places.get(str(path))
        if place is not None and stamps[row, 0] >= 0 and (seen.stamps[place] == stamps[row]).all():
            findings.copy_row(row, seen.findings, place)
            known[row] = True
    return known


def _remember(memory: Path, before: _Seen, now: _Seen) -> None:
    """Keep `now`, and of `before` what is about other files: another split may lie in the same folder."""
    newer = set(now.paths)
    others = [place for place, path in enumerate(before.paths) if path not in newer]
    findings = before.findings.rows(others).followed_by(now.findings)
    words = {
        "version": _VERSION,
        "paths": [before.paths[place] for place in others] + now.paths,
        "reasons": findings.reasons,
        "formats": findings.formats,
    }
    arrays = {"sizes": findings.sizes, "digests": findings.digests, "thumbnails": findings.thumbnails}
    arrays["stamps"] = np.concatenate((before.stamps[others], now.stamps))
    arrays["words"] = np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)
    # a memory that cannot be written only costs time
    with suppress(OSError, UserError), atomic_path(memory) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
