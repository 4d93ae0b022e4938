"""Decode every image of a data set once, and cache the findings.

Stores find bad files by themselves while they decode. This is for `imgcls.prepare` and the report, which also need
formats, sizes and duplicates: of images that are decoded for a store anyway, with `InspectedSplit`. The findings for a
file are cached until its size or modification time changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import PIL
from PIL import Image

from imgcls.data.sources import BadFile, Split
from imgcls.data.threads import map_with_bar
from imgcls.errors import UserError
from imgcls.images.channels import RGB, Depth, Planes, open_planes
from imgcls.images.decoding import BadPicture, decode, is_scaled
from imgcls.images.paths import file_state
from imgcls.system.cache import alone, cache_folder
from imgcls.system.files import atomic_path, take_lock
from imgcls.system.machine import own_cores
from imgcls.system.shares import ALL, Share
from imgcls.system.tables import table_as_csv

THUMBNAIL = (8, 9)  # height, width: one column more than a difference hash has bits in a row
_VERSION = f"2 {PIL.__version__}"  # another Pillow may read files that this one cannot
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
    "NPY": {".npy"},
    "TIF": {".tif"},
    "JPG": {".jpg"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
}


@dataclass(frozen=True, eq=False)
class Findings:
    """Facts about N images, in their order; every field is an array of N rows."""

    reasons: np.ndarray
    """str (N,): why the image cannot be used; '' if it can. The other fields are valid only if it can."""
    formats: np.ndarray
    """str (N,): the format of the content, 'JPEG', 'PNG', …; '' for pixels in memory."""
    sizes: np.ndarray
    """int64 (N, 2): width and height, px, upright."""
    digests: np.ndarray
    """uint64 (N, 2): a hash of the decoded pixels."""
    thumbnails: np.ndarray
    """uint8 (N, 8, 9, 3): the image shrunk to that size."""

    def __len__(self) -> int:
        return len(self.reasons)

    @classmethod
    def empty(cls, count: int) -> Findings:
        """Rows to be filled for `count` images."""
        digests, sizes = np.zeros((count, 2), dtype=np.uint64), np.zeros((count, 2), dtype=np.int64)
        reasons, formats = (np.full(count, "", dtype=object) for _ in range(2))
        return cls(reasons, formats, sizes, digests, np.zeros((count, *THUMBNAIL, 3), dtype=np.uint8))

    @property
    def columns(self) -> list[np.ndarray]:
        """The arrays of all fields."""
        return list(vars(self).values())

    def fill(self, row: int, picture: Path | np.ndarray, depth: Depth = RGB) -> None:
        """Decode `picture` and fill row `row`."""
        try:
            self.record(row, *(decode(picture) if depth == RGB else _decode_planes(picture, depth)))
        except BadPicture as error:
            self.reasons[row] = error.reason

    def record(self, row: int, image: Image.Image, kind: str) -> None:
        """Fill row `row` from a decoded image and its format."""
        self.sizes[row], self.formats[row] = image.size, kind
        content = hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size)
        self.digests[row] = np.frombuffer(content.digest(), dtype=np.uint64)
        height, width = THUMBNAIL
        self.thumbnails[row] = image.resize((width, height), Image.Resampling.BOX, reducing_gap=3.0)


def _decode_planes(picture: Path | np.ndarray, depth: Depth) -> tuple[Image.Image, str]:
    """An image of other channels or bits as people see it, and its format."""
    return open_planes(picture, depth).preview(), _kind_of_planes(picture)


def _kind_of_planes(picture: Path | np.ndarray) -> str:
    return "" if isinstance(picture, np.ndarray) else picture.suffix.lstrip(".").upper()


class Inspection:
    """The findings for files that are decoded for something else, added to the cache by `save`.

    Args:
        files, cache, depth: see `inspect`.
    """

    def __init__(self, files: Sequence[Path], cache: Path | None, depth: Depth) -> None:
        self.files, self.findings, self._depth, self._cache = files, Findings.empty(len(files)), depth, cache
        self._stamps = _stamps(files)
        self.known = _CachedFindings(files, cache, depth).restore(files, self._stamps, self.findings)
        self._new = np.zeros(len(files), dtype=bool)

    def record(self, row: int, decoded: tuple[Image.Image, str] | BadPicture) -> None:
        """Add what is found in the file `row`, decoded to an image and its format."""
        if isinstance(decoded, BadPicture):
            self.findings.reasons[row] = decoded.reason
        else:
            self.findings.record(row, *decoded)
        self.known[row] = self._new[row] = True

    def save(self) -> None:
        """Add the new findings to the cache."""
        if self._new.any():
            paths = [str(self.files[row]) for row in np.flatnonzero(self._new).tolist()]
            columns = [column[self._new] for column in (self._stamps, *self.findings.columns)]
            _CachedFindings(self.files, self._cache, self._depth).save(paths, columns)
            self._new[:] = False


@dataclass(frozen=True, eq=False)
class InspectedSplit(Split):
    """A split whose images are inspected when they are decoded; only those scaled while they are decoded, twice."""

    inspection: Inspection | None = None

    @classmethod
    def of(cls, split: Split, cache: Path | None, depth: Depth) -> InspectedSplit:
        """`split`, which consists of files."""
        return cls(**{**vars(split), "inspection": Inspection(split.files, cache, depth)})

    def open(self, index: int) -> Image.Image:
        return self._decode(index)[0]

    def open_scaled(self, index: int, side: int) -> tuple[np.ndarray, float]:
        if self._is_known(index):
            return super().open_scaled(index, side)
        image, kind = self._decode(index)
        if is_scaled(kind, image.size, side):
            return super().open_scaled(index, side)
        return np.asarray(image), image.width / image.height

    def open_planes(self, index: int, depth: Depth) -> Planes:
        try:
            planes = super().open_planes(index, depth)
        except BadPicture as error:
            self._record(index, error)
            raise
        if not self._is_known(index):
            self._record(index, (planes.preview(), _kind_of_planes(self.files[index])))
        return planes

    def _decode(self, index: int) -> tuple[Image.Image, str]:
        try:
            decoded = decode(self.files[index])
        except BadPicture as error:
            self._record(index, error)
            raise
        if not self._is_known(index):
            self._record(index, decoded)
        return decoded

    def save(self) -> None:
        """Add what has been found to the cache."""
        if self.inspection is not None:
            self.inspection.save()

    def _is_known(self, index: int) -> bool:
        assert self.inspection is not None
        return bool(self.inspection.known[index])

    def _record(self, index: int, decoded: tuple[Image.Image, str] | BadPicture) -> None:
        assert self.inspection is not None
        self.inspection.record(index, decoded)


def inspect(
    pictures: Sequence[Path] | np.ndarray,
    cache: Path | None = None,
    workers: int | None = None,
    depth: Depth = RGB,
    share: Share = ALL,
) -> Findings:
    """Decode every image and return the findings, with a progress bar on a terminal.

    Args:
        pictures: files, or pixels uint8 (N, H, W, 3).
        cache: the folder in which the findings for files are cached; the user's cache folder if None.
        workers: threads that decode; as many as cores if None.
        depth: channels and bits that the images must have.
        share: of the files without cached findings, which other processes do not decode; only these are valid then.
    """
    findings = inspect_few(pictures, len(pictures), cache, workers, depth, share)
    assert findings is not None
    return findings


def inspect_few(
    pictures: Sequence[Path] | np.ndarray,
    limit: int,
    cache: Path | None = None,
    workers: int | None = None,
    depth: Depth = RGB,
    share: Share = ALL,
) -> Findings | None:
    """As `inspect`; None, and nothing is decoded, where more than `limit` files have no cached findings.

    None too for images that are not on this machine.
    """
    if not getattr(pictures, "on_disk", True):
        return None
    findings = Findings.empty(len(pictures))
    if isinstance(pictures, np.ndarray) or not pictures:
        list(_fill_rows(findings, pictures, range(len(pictures)), workers, depth))
        return findings
    stamps, cached = _stamps(pictures), _CachedFindings(pictures, cache, depth)
    known = cached.restore(pictures, stamps, findings)
    unknown = np.flatnonzero(~known)
    if len(unknown) > limit:
        return None
    try:
        own = unknown[unknown % share.count == share.rank]  # whatever other processes have found meanwhile
        for row in _fill_rows(findings, pictures, own.tolist(), workers, depth):
            known[row] = True
    finally:  # an interrupted check resumes where it stopped
        if len(unknown):
            paths = [str(path) for path, filled in zip(pictures, known, strict=True) if filled]
            cached.save(paths, [column[known] for column in (stamps, *findings.columns)])
    return findings


def inspect_together(
    pictures: Sequence[Path] | np.ndarray, cache: Path, workers: int, depth: Depth, processes: int
) -> Findings:
    """As `inspect`, of which each of several `processes` on this machine, which all call it, decodes a part."""
    if processes > 1 and inspect_few(pictures, 0, cache, workers, depth) is None:
        place = hashlib.blake2b(f"{pictures[0]}\0{len(pictures)}".encode("utf-8", "surrogateescape"), digest_size=12)
        locks = [cache / "checks" / f".{place.hexdigest()}.{part}-of-{processes}.lock" for part in range(processes)]
        with suppress(OSError):  # without a cache each process does everything
            locks[0].parent.mkdir(parents=True, exist_ok=True)
            taken = set[int]()
            with ExitStack() as stack:
                for part, lock in enumerate(locks):
                    if take_lock(stack.enter_context(lock.open("a")), wait=False):
                        taken.add(part)
                        inspect(pictures, cache, workers, depth, Share(part, processes))
            for part in {*range(processes)} - taken:
                with locks[part].open("a") as file:
                    take_lock(file, wait=True)
    return inspect(pictures, cache, workers, depth)


def find_mislabelled(paths: Sequence[Path], findings: Findings) -> list[tuple[Path, str]]:
    """(file, format of the content) of files whose suffix belongs to another format; they can be used all the same."""
    return [
        (path, kind)
        for path, kind in zip(paths, findings.formats, strict=True)
        if kind and path.suffix.lower() not in _SUFFIXES.get(kind, {f".{kind.lower()}"})
    ]


def bad_as_csv(bad: Iterable[BadFile]) -> str:
    """A CSV table of paths and reasons, for a file in the run folder."""
    rows = [(os.fsencode(file.path).decode("utf-8", "backslashreplace"), file.reason) for file in bad]
    return table_as_csv([BadFile._fields, *rows])


def _fill_rows(
    findings: Findings,
    pictures: Sequence[Path] | np.ndarray,
    rows: Sequence[int],
    workers: int | None,
    depth: Depth,
) -> Iterator[int]:
    """Fill `rows` of `findings` in threads, and yield each row when it is filled."""

    def fill(row: int) -> int:
        findings.fill(row, pictures[row], depth)
        return row

    return map_with_bar(fill, rows, workers or own_cores(), f"Checking {len(rows):,} images")


def _stamps(paths: Sequence[Path]) -> np.ndarray:
    """int64 (N, 4): size, times of change and inode of each file; -1 if it does not exist."""
    return np.array([file_state(path) for path in paths], dtype=np.int64).reshape(-1, 4)


class _CachedFindings:
    """The cached findings for the files in the common folder of `paths`.

    Empty if the cache file is missing, damaged, or from another version.
    """

    def __init__(self, paths: Sequence[Path], cache: Path | None, depth: Depth = RGB) -> None:
        common = os.path.commonpath([os.path.abspath(path) for path in paths])  # noqa: PTH100
        place = os.fsencode(common) + (b"" if depth == RGB else b"\0%d %d" % depth)
        key = hashlib.blake2b(place, digest_size=12).hexdigest()
        self.file = (cache or cache_folder()) / "checks" / f"{key}.npz"
        self.paths: list[str] = []
        self.stamps, self.findings = np.zeros((0, 4), dtype=np.int64), Findings.empty(0)
        self._read()

    def _read(self) -> None:
        with (
            suppress(OSError, EOFError, ValueError, KeyError, BadZipFile),
            np.load(self.file, allow_pickle=False) as stored,
        ):
            texts = json.loads(stored["words"].tobytes())
            if texts["version"] == _VERSION:
                columns = [np.array(texts[name], dtype=object) for name in ("reasons", "formats")]
                columns += [stored[name] for name in ("sizes", "digests", "thumbnails")]
                self.paths, self.stamps, self.findings = texts["paths"], stored["stamps"], Findings(*columns)

    def restore(self, paths: Sequence[Path], stamps: np.ndarray, findings: Findings) -> np.ndarray:
        """Fill the rows of files that have not changed since; bool (N,): which these are."""
        places = {path: place for place, path in enumerate(self.paths)}
        found = np.array([places.get(str(path), -1) for path in paths], dtype=np.int64)
        known = (found >= 0) & (stamps[:, 0] >= 0)
        known[known] = (self.stamps[found[known]] == stamps[known]).all(axis=1)
        for column, stored in zip(findings.columns, self.findings.columns, strict=True):
            column[known] = stored[found[known]]
        return known

    def save(self, paths: list[str], columns: list[np.ndarray]) -> None:
        """Store the stamps and findings for `paths`, and keep those for other files, as of another split or process."""
        with suppress(OSError, UserError), alone(self.file):  # without a cache only the next check takes longer
            self._read()
            self._write(paths, columns)

    def _write(self, paths: list[str], columns: list[np.ndarray]) -> None:
        newer = set(paths)
        others = [place for place, path in enumerate(self.paths) if path not in newer]
        kept = [column[others] for column in (self.stamps, *self.findings.columns)]
        stamps, reasons, formats, *arrays = map(np.concatenate, zip(kept, columns, strict=True))
        texts = {"version": _VERSION, "paths": [self.paths[place] for place in others] + paths}
        texts |= {"reasons": reasons.tolist(), "formats": formats.tolist()}
        content = dict(zip(("sizes", "digests", "thumbnails"), arrays, strict=True))
        content |= {"stamps": stamps, "words": np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)}
        with atomic_path(self.file) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **content)
