"""Writes a data set as shards, which `imgcls.data.shards`, WebDataset and other readers of tar files take."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from imgcls.data.sharding.index import CLASS_NAMES, INDEX_SUFFIX, Index, load_index
from imgcls.data.sharding.listing import LIST, ShardList
from imgcls.data.sources import Source, Split
from imgcls.data.threads import map_with_bar
from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture, read_size
from imgcls.images.paths import file_state, read_member
from imgcls.images.signatures import PICTURE_SUFFIXES
from imgcls.system.files import atomic_path, atomic_write_text, explain_os_errors, sha256_of
from imgcls.system.shares import ALL, Share

SHARD_BYTES = 256 << 20


def write_shards(source: Source, folder: Path, workers: int, share: Share = ALL) -> list[Path]:
    """Write the images of `source`, as their files are, to tar files in `folder`; return those of this `share`.

    The images of a split are in a random order, which is always the same, so that a part of a shard is a sample of the
    data set. Shards that an earlier call has completed stay.

    Raises:
        UserError: `folder` has other shards, or cannot be written.
    """
    planned = [
        (folder / f"{name}-{number:05}.tar", split, rows)
        for name, split in source.splits().items()
        for number, rows in enumerate(_cut(split))
    ]
    others = sorted({*folder.glob("*.tar")} - {file for file, _, _ in planned})
    if others:
        raise UserError(f"{others[0]} is a shard of other images. Choose another folder, or remove it.")
    own = share.of(planned)
    if share.rank == 0:
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LIST).unlink(missing_ok=True)  # of earlier shards
        atomic_write_text(folder / CLASS_NAMES, "".join(f"{name}\n" for name in source.class_names))

    def write(number: int) -> Path:
        file, split, rows = own[number]
        key = _key(split, rows)
        if not is_complete(file, key):
            write_shard(file, _members(split, rows), key)
        return file

    written = list(map_with_bar(write, range(len(own)), workers, f"Writing {len(own):,} shards"))
    planned.sort(key=lambda shard: shard[0].name)
    if all(is_complete(file, _key(split, rows)) for file, split, rows in planned):  # in the last process, or several
        with explain_os_errors(folder):
            ShardList.of((file.name, load_index(_index_of(file))) for file, _, _ in planned).write(folder)
    return written


def _cut(split: Split) -> Iterator[np.ndarray]:
    """The positions of the images of each shard."""
    order = np.random.default_rng(0).permutation(len(split))
    if isinstance(split.pictures, np.ndarray):
        sizes = np.full(len(split), split.pictures[:1].nbytes)
    else:
        sizes = np.array([max(0, file_state(split.files[row])[0]) for row in order])
    shards = np.cumsum(sizes) // SHARD_BYTES
    yield from np.split(order, np.flatnonzero(np.diff(shards)) + 1)


def _key(split: Split, rows: np.ndarray) -> str:
    """32 hexadecimal digits of the names, labels and files of some images."""
    states = [file_state(split.files[row]) for row in rows] if split.files else []
    content = json.dumps([[split.names[row] for row in rows], split.labels[rows].tolist(), states])
    return hashlib.blake2b(content.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def is_complete(file: Path, key: str) -> bool:
    """Whether a shard, and its index, have been written from what `key` stands for."""
    with suppress(OSError, ValueError, TypeError):
        index = load_index(_index_of(file))
        return index.key == key and index.measured and index.bytes == file.stat().st_size
    return False


def _index_of(file: Path) -> Path:
    return file.with_name(file.name + INDEX_SUFFIX)


class Member(NamedTuple):
    """An image of a shard."""

    name: str
    """Unique in the shard, without a dot."""
    suffix: str
    content: bytes
    label: str
    """See Index.labels."""


def member_name(row: int, path: str) -> str:
    """A name for the image in a row, with that of its `path` if it has one; the number makes it unique."""
    return f"{row:08}_{Path(path).stem.replace('.', '_')}" if path else f"{row:08}"


def write_shard(file: Path, members: Iterable[Member], key: str) -> None:
    """Write a shard and, after it, its index, which has the `key`. Raises UserError where they cannot be written."""
    index = Index(0, [], [], [], [], key)
    _index_of(file).unlink(missing_ok=True)  # of an earlier shard
    with atomic_path(file) as temporary, tarfile.open(temporary, "w") as tar:
        for name, suffix, content, label in members:
            _add(tar, f"{name}{suffix}", content)
            index.names.append(f"{name}{suffix}")
            index.starts.append(tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            index.sizes.append(len(content))
            index.labels.append(label)
            width, height = 0, 0
            with suppress(BadPicture):
                width, height = read_size(io.BytesIO(content))
            index.widths.append(width)
            index.heights.append(height)
            _add(tar, f"{name}.cls", label.encode())
    found = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    atomic_write_text(_index_of(file), json.dumps(asdict(index) | found))


def _members(split: Split, rows: np.ndarray) -> Iterator[Member]:
    for row in rows.tolist():
        content, suffix = _content(split, row)
        label = str(np.flatnonzero(split.labels[row]).tolist() if split.multilabel else split.labels[row])
        yield Member(member_name(row, split.names[row]), suffix, content, label)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _content(split: Split, row: int) -> tuple[bytes, str]:
    """The file of an image, and its suffix; pixels in memory as PNG."""
    picture = split.pictures[row]
    if isinstance(picture, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        return buffer.getvalue(), ".png"
    content = read_member(str(picture))
    suffix = picture.suffix.lower()
    return picture.read_bytes() if content is None else content, suffix if suffix in PICTURE_SUFFIXES else ".jpg"
