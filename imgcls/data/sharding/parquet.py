"""Shards in Parquet, as those of the Hugging Face hub: written once as tar files in the cache, and read as these.

The columns of a Parquet file are compressed, many images at a time, so that to read one by its place would decompress
all of these. A tar file for each takes as much of the disk, and no file for each image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

from imgcls.data.embedded import content_of, suffix_of
from imgcls.data.sharding.writing import Member, is_complete, member_name, write_shard
from imgcls.data.table import USUAL_COLUMNS, choose_columns
from imgcls.data.table_files import read_columns
from imgcls.data.threads import map_with_bar
from imgcls.errors import UserError, first_line
from imgcls.images.paths import file_state
from imgcls.system.cache import DESCRIPTIONS, find_or_build, hold
from imgcls.system.files import atomic_write_text
from imgcls.system.machine import spare_disk
from imgcls.system.text import format_bytes

DESCRIPTION = DESCRIPTIONS["unpacked"]
T = TypeVar("T")


def list_parquet(root: Path) -> list[Path]:
    """The Parquet files below `root`, sorted."""
    return sorted(file for file in root.rglob("*.parquet") if file.is_file())  # Spark calls folders so too


def as_tars(root: Path, files: Sequence[Path], cache: Path, workers: int) -> tuple[Path, IO[bytes]]:
    """The folder with a tar file, and its index, for each of the Parquet `files` below `root`.

    They are written once, in `workers` threads; a killed command continues with those that are missing. They are kept
    in the cache as long as the file in the result is open. Raises UserError for a file that has no images or no labels,
    and where the disk has no room.
    """
    states = [(file.relative_to(root).as_posix(), file_state(file)) for file in files]
    content = json.dumps([str(root.resolve()), states]).encode("utf-8", "surrogateescape")
    folder = cache / "unpacked" / hashlib.blake2b(content, digest_size=16).hexdigest()

    def find() -> IO[bytes] | None:
        with suppress(OSError):
            return hold(folder / DESCRIPTION)
        return None

    def build(partial: Path) -> None:
        missing = [
            (file, target)
            for file, (name, _) in zip(files, states, strict=True)
            if not is_complete(target := (partial / name).with_suffix(".tar"), folder.name)
        ]
        size, free = sum(file.stat().st_size for file, _ in missing), spare_disk(cache)
        if size > free:
            raise UserError(
                f"{root} has {format_bytes(size)} of Parquet files, which are written to {cache} as tar files, but "
                f"{format_bytes(free)} are free there. Set IMGCLS_CACHE to a folder on another disk."
            )

        def write(number: int) -> None:
            write_shard(missing[number][1], _members(missing[number][0]), folder.name)

        for _ in map_with_bar(write, range(len(missing)), workers, f"Writing {len(missing):,} Parquet files as tar"):
            pass
        atomic_write_text(partial / DESCRIPTION, json.dumps({"root": str(root)}))

    try:
        return folder, find_or_build(folder, find, build, resume=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error


def _members(file: Path) -> Iterator[Member]:
    """The images of a Parquet file; none of one whose rows have no labels, such as a competition's test images."""
    chosen: dict[str, str] = {}

    def choose(header: list[str]) -> list[str]:
        chosen.update(choose_columns(file, header, dict.fromkeys(USUAL_COLUMNS)))
        return [chosen["file"], chosen["label"]]

    columns = read_columns(file, choose)
    if chosen["file"] not in columns.embedded:
        raise UserError(
            f"{file} has no images in its column {chosen['file']!r}. With paths there, it is data.table=FILE."
        )
    labels = columns.values[chosen["label"]]
    if not any(label != "" for label in labels):
        return
    cells = _read(columns.embedded[chosen["file"]].read(), file)
    for row, (cell, label) in enumerate(zip(cells, labels, strict=True)):
        if label == "":
            raise UserError(f"{file}, row {row + 1} has no label.")
        image, path = content_of(cell)
        text = json.dumps(label) if isinstance(label, list) else str(label)
        yield Member(member_name(row, path), suffix_of(image), image, text)


def _read(cells: Iterable[T], file: Path) -> Iterator[T]:
    """`cells`. Raises UserError where their file is damaged."""
    try:
        yield from cells
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {first_line(error)}") from error
