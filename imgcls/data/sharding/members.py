"""The images in shards, as the pictures of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.names import names_at
from imgcls.data.sharding.cache import Reading, ShardCache
from imgcls.data.sources import FilesIn
from imgcls.images.paths import member_path


class MembersIn(FilesIn):
    """Files in shards; the path of each is made when it is used.

    Args:
        folder: of the shards.
        names: of the files.
        shards: paths of the shards from `folder`.
        places: int64 (N, 3): the number of each file's shard, where its content begins, and its bytes.
        sizes: int32 (N, 2): width and height of each image, px, where the index has them.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        shards: Sequence[str],
        places: np.ndarray,
        sizes: np.ndarray | None = None,
    ) -> None:
        super().__init__(folder, names)
        self.shards, self.places, self.sizes = shards, places, sizes

    def paths(self) -> list[Path]:
        """Of the shards."""
        return [Path(self.folder, shard) for shard in self.shards]

    def _path(self, index: int) -> Path:
        shard, start, size = self.places[index].tolist()
        return Path(self.folder, member_path(self.shards[shard], start, size, self.names[index]))

    def _options(self, at: Any) -> dict[str, Any]:
        sizes = self.sizes[at] if self.sizes is not None else None
        return {"shards": self.shards, "places": self.places[at], "sizes": sizes}

    def at(self, indices: Iterable[int]) -> MembersIn:
        """The files at `indices`, in that order."""
        chosen = list(indices)
        return type(self)(self.folder, names_at(self.names, chosen), **self._options(chosen))


class StreamedMembers(MembersIn):
    """Images in shards that are fetched when their turn comes; each is read as bytes, which fetches at least these.

    Args:
        cache: of the shards, in `folder`.
        keys: of the shards' contents.
        folder, names, shards, places, sizes: see MembersIn.
    """

    on_disk = False

    def __init__(self, *args: Any, cache: ShardCache, keys: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.cache, self.keys = cache, keys
        self.reading: Reading | None = None
        """Where the images are read from, if they have been announced."""

    def _options(self, at: Any) -> dict[str, Any]:
        return {**super()._options(at), "cache": self.cache, "keys": self.keys}

    def _path(self, index: int) -> bytes:  # type: ignore[override]  # images are opened from their bytes as well
        shard, start, size = self.places[index].tolist()
        return (self.reading or self.cache).read(self.shards[shard], start, size)

    def joined(self, others: Sequence[FilesIn]) -> StreamedMembers:
        """These and the images of `others`, which are of the same data set."""
        parts = [self, *(other for other in others if isinstance(other, StreamedMembers))]
        shards = dict.fromkeys(shard for part in parts for shard in part.shards)
        numbers = {shard: number for number, shard in enumerate(shards)}
        keys = {shard: key for part in parts for shard, key in zip(part.shards, part.keys, strict=True)}
        places = [part.places.copy() for part in parts]
        for part, own in zip(parts, places, strict=True):
            own[:, 0] = np.array([numbers[shard] for shard in part.shards], dtype=np.int64)[own[:, 0]]
        return StreamedMembers(
            self.folder,
            [name for part in parts for name in part.names],
            shards=list(numbers),
            places=np.concatenate(places),
            sizes=np.concatenate([part.sizes for part in parts if part.sizes is not None]),
            cache=self.cache,
            keys=[keys[shard] for shard in numbers],
        )

    def digest(self) -> bytes:
        """What identifies the contents, by the index."""
        described = [*self.shards, "", *self.keys]
        content = hashlib.blake2b("\0".join(described).encode("utf-8", "surrogateescape"), digest_size=16)
        content.update(np.ascontiguousarray(self.places).data)
        return content.digest()
