"""All images of a set of shards as arrays: ImageNet-21k's 14 million are known in seconds, and take memory once.

Beside the shards, `imgcls.prepare shards=DIR` writes `shards.json`, which says what each shard is, and the arrays in a
file that all processes of a machine map.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgcls.data.names import PackedNames
from imgcls.data.sharding.cache import Shard
from imgcls.data.sharding.index import Index, list_shards, read_index
from imgcls.data.threads import map_with_bar
from imgcls.system.files import atomic_path, atomic_write_text, sha256_of

LIST = "shards.json"
ARRAYS = re.compile(r"images-[0-9a-f]{16}\.safetensors")
COLUMNS = {"starts": np.int64, "sizes": np.int64, "labels": np.int32, "widths": np.int32, "heights": np.int32}
TYPES = {"text": np.uint8, "ends": np.int64, "texts": np.uint8, **COLUMNS}


class Listed(NamedTuple):
    """The content of a `shards.json`."""

    shards: Mapping[str, Shard]
    arrays: str
    """The file of the arrays, beside it."""
    bytes: int
    """Of that file."""
    sha256: str


@dataclass(frozen=True, eq=False)
class ShardList:
    """The images of some shards, in the order of these."""

    shards: Mapping[str, Shard]
    names: PackedNames
    """Their paths in the shards."""
    starts: np.ndarray
    """int64 (N,): where their contents begin, bytes from the start of the shard."""
    sizes: np.ndarray
    """int64 (N,): bytes of their contents."""
    labels: np.ndarray
    """int32 (N,): places in `texts`."""
    widths: np.ndarray | None
    """int32 (N,), px, upright; 0 where the header cannot be read. None where not all have been looked at."""
    heights: np.ndarray | None
    texts: list[str]
    """What is said beside the images, each text once; see Index.labels."""

    @classmethod
    def of(cls, found: Iterable[tuple[str, Index]]) -> ShardList:
        """Of the index of each shard, by its path."""
        shards: dict[str, Shard] = {}
        codes: dict[str, int] = {}
        columns: dict[str, list[np.ndarray]] = {name: [np.empty(0, dtype=np.int64)] for name in COLUMNS}
        texts, ends, measured = [np.empty(0, dtype=np.uint8)], [np.zeros(1, dtype=np.int64)], True
        written = 0
        for name, index in found:
            shards[name] = Shard(index.bytes, index.sha256, index.key, len(index.names))
            text, own = PackedNames.pack(index.names)
            texts.append(text)
            ends.append(own[1:] + written)
            written += len(text)
            measured &= index.measured
            labels = [codes.setdefault(label, len(codes)) for label in index.labels]
            for column, values in zip(
                COLUMNS, (index.starts, index.sizes, labels, index.widths, index.heights), strict=True
            ):
                columns[column].append(np.array(values, dtype=np.int64))
        joined = {name: np.concatenate(parts) for name, parts in columns.items()}
        return cls(
            shards,
            PackedNames(np.concatenate(texts), np.concatenate(ends)),
            joined["starts"],
            joined["sizes"],
            joined["labels"].astype(np.int32),
            joined["widths"].astype(np.int32) if measured else None,
            joined["heights"].astype(np.int32) if measured else None,
            [*codes],
        )

    def rows(self, shards: Iterable[str]) -> np.ndarray:
        """The places of the images of `shards`, in the order of these, int64 (n,)."""
        ends = np.cumsum([0, *(shard.images for shard in self.shards.values())]).tolist()
        ranges = dict(zip(self.shards, pairwise(ends), strict=True))
        return np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(*ranges[shard]) for shard in shards)])

    def write(self, folder: Path) -> None:
        """Write it beside the shards, which have been measured."""
        from safetensors.numpy import save_file

        assert self.widths is not None
        assert self.heights is not None
        shards = {name: shard._asdict() for name, shard in self.shards.items()}
        key = hashlib.blake2b(json.dumps(shards).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        file = folder / f"images-{key}.safetensors"
        with atomic_path(file) as temporary:
            save_file(
                {
                    "text": self.names.text,
                    "ends": self.names.ends,
                    "texts": np.frombuffer(json.dumps(self.texts).encode(), dtype=np.uint8),
                    **{name: np.ascontiguousarray(getattr(self, name)) for name in COLUMNS},
                },
                temporary,
            )
        arrays = {"arrays": file.name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        atomic_write_text(folder / LIST, json.dumps({"shards": shards, **arrays}))
        remove_other_arrays(folder, file.name)

    @classmethod
    def read(cls, folder: Path) -> ShardList:
        """Map what `write` has written. Raises OSError, ValueError."""
        from safetensors import SafetensorError, safe_open

        listed = read_list(folder / LIST)
        arrays: dict[str, np.ndarray] = {}
        try:
            with safe_open(folder / listed.arrays, "pt") as opened:  # of torch, which maps the file
                for name in TYPES:
                    arrays[name] = opened.get_tensor(name).numpy()
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"{folder / listed.arrays}: {error}") from error
        if any(array.dtype != TYPES[name] or array.ndim != 1 for name, array in arrays.items()):
            raise ValueError(f"{folder / listed.arrays} has other types of numbers")
        text, ends = arrays.pop("text"), arrays.pop("ends")
        texts = [str(label) for label in json.loads(arrays.pop("texts").tobytes())]
        counts = [shard.images for shard in listed.shards.values()]
        if {len(ends) - 1, *map(len, arrays.values())} != {sum(counts)} or ends[0] != 0 or ends[-1] != len(text):
            raise ValueError(f"{folder / listed.arrays} is not the file of {LIST}")
        if sum(counts):
            if not 0 <= arrays["labels"].min() <= arrays["labels"].max() < len(texts):
                raise ValueError(f"{folder / listed.arrays} has wrong labels")
            room = np.repeat([shard.bytes for shard in listed.shards.values()], counts) - arrays["sizes"]
            smallest = min(int(arrays[name].min()) for name in COLUMNS)
            if smallest < 0 or (arrays["starts"] > room).any() or (np.diff(ends) < 0).any():
                raise ValueError(f"{folder / listed.arrays} has places outside of the shards")
        return cls(listed.shards, PackedNames(text, ends), **arrays, texts=texts)


def read_list(file: Path) -> Listed:
    """The content of a `shards.json`. Raises OSError, ValueError."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        shards = {str(name): Shard(**shard) for name, shard in content["shards"].items()}
        listed = Listed(shards, content["arrays"], content["bytes"], content["sha256"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} was not written by imgcls.prepare") from error
    numbers = [listed.bytes, *(number for shard in shards.values() for number in (shard.bytes, shard.images))]
    hashes = [listed.sha256, *(text for shard in shards.values() for text in (shard.sha256, shard.key))]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError(f"{file} has counts that are no whole numbers")
    if not all(isinstance(text, str) for text in (listed.arrays, *hashes)):
        raise ValueError(f"{file} has hashes that are no texts")
    if any(part in ("", ".", "..") or "\0" in part for name in shards for part in name.split("/")):
        raise ValueError(f"{file} has names that are no paths")
    if not all(name.endswith(".tar") for name in shards):
        raise ValueError(f"{file} has shards that are no tar files")
    if not ARRAYS.fullmatch(listed.arrays):
        raise ValueError(f"{file} has no file of arrays")
    return listed


def are_in(root: Path, shards: Mapping[str, Shard]) -> bool:
    """Whether the shards below `root` are these, by their names and bytes. Raises OSError."""
    return sorted(shards) == list_shards(root) and all(
        (root / name).stat().st_size == shard.bytes for name, shard in shards.items()
    )


def read_shards(root: Path, cache: Path, workers: int, *, measured: bool = False) -> ShardList:
    """The images of the shards below `root`: of their list if it is theirs, else of the index of each.

    Args:
        root: folder of the shards.
        cache: folder for an index that cannot be beside its shard.
        workers: threads.
        measured: read the header of each image too, if that has not been done.
    """
    with suppress(OSError, ValueError):
        known = ShardList.read(root)
        if are_in(root, known.shards):
            return known
    shards = list_shards(root)

    def index(number: int) -> Index:
        return read_index(root / shards[number], cache, measured=measured)

    return ShardList.of(zip(shards, map_with_bar(index, range(len(shards)), workers, "Indexing shards"), strict=True))


def remove_other_arrays(folder: Path, kept: str) -> None:
    """Remove the arrays of earlier lists in `folder`."""
    for other in folder.iterdir():
        if ARRAYS.fullmatch(other.name) and other.name != kept:
            other.unlink(missing_ok=True)
