"""Pixels of images whose shards are fetched when their turn comes."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imgcls.data.batch import AugmentationInput, Batch, RawBatch
from imgcls.data.batches import Load
from imgcls.data.loader import run_ahead
from imgcls.data.sharding.members import StreamedMembers
from imgcls.data.sources import BadFile, Split
from imgcls.data.stores.store import DecodingStore, Recipe
from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture

log = logging.getLogger(__name__)

UNREADABLE = "unreadable.jsonl"  # beside the shards: a line for each image, of all processes and runs
LOGGED = 3  # images that each process names in the log
BATCHES_AHEAD = 2


class StreamedStore(DecodingStore):
    """Decodes the images of each batch in threads, without having seen them before.

    Batches that are announced by `batches` come from shards that are fetched ahead; other images, such as a sample of
    the data set, are fetched one by one. What cannot be decoded is found only then, and left out of its batch.
    """

    def __init__(self, split: Split, recipe: Recipe, workers: int, on_bad: str = "skip") -> None:
        members = copy.copy(split.pictures)
        assert isinstance(members, StreamedMembers)
        assert members.sizes is not None
        self.recipe, self.workers, self.members, self.on_bad = recipe, workers, members, on_bad
        self.bad = ()
        self.split = replace(split, pictures=members)
        self.aspects = (members.sizes[:, 0] / members.sizes[:, 1]).astype(np.float32)
        self._unreadable: set[int] = set()

    def batches(
        self, load: Load, batches: Sequence[tuple[Tensor, Tensor]], epoch: int
    ) -> Generator[RawBatch | Batch, None, None]:
        """load(positions, draws, epoch) for each batch, whose shards are fetched meanwhile; without unreadable images.

        Raises UserError where no image of a training batch can be read.
        """
        positions = torch.cat([part for part, _ in batches]) if batches else torch.empty(0, dtype=torch.int64)
        found = np.unique(self.members.places[positions.numpy(), 0], return_index=True, return_counts=True)
        in_order = sorted(zip(*(part.tolist() for part in found), strict=True), key=lambda shard: shard[1])
        uses = {self.members.shards[number]: count for number, _, count in in_order}
        with self.members.cache.reading(uses) as reading:
            self.members.reading = reading
            loaded = run_ahead(lambda batch: load(batch[0], batch[1], epoch), batches, BATCHES_AHEAD)
            try:
                for batch in loaded:
                    yield self._without_unreadable(batch)
            finally:
                reading.stop()  # first, since the next batches may be waiting for their shards
                loaded.close()
                self.members.reading = None

    def _handle_bad(self, position: int, error: BadPicture) -> None:
        name = self.split.names[position]
        if self.on_bad == "error":
            raise UserError(f"{name} cannot be read: {error.reason}. Write the shards again, or set data.on_bad=skip.")
        if position in self._unreadable:
            return
        self._unreadable.add(position)
        if len(self._unreadable) <= LOGGED:
            log.warning("%s cannot be read and is left out: %s", name, error.reason)
        with suppress(OSError), (self.members.cache.folder / UNREADABLE).open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, error.reason]) + "\n")

    def _without_unreadable(self, batch: RawBatch | Batch) -> RawBatch | Batch:
        if not self._unreadable:
            return batch
        good = [row for row, position in enumerate(batch.index.tolist()) if position not in self._unreadable]
        if len(good) == len(batch.index):
            return batch
        if isinstance(batch, RawBatch) and batch.augmentation is not None and not good:
            raise UserError(f"No image of a training batch of {len(batch.index)} can be read.")
        rows = torch.tensor(good, dtype=torch.int64)
        images = batch.images[rows].contiguous(memory_format=torch.channels_last)
        changed = batch._replace(
            images=images,
            labels=batch.labels[rows],
            index=batch.index[rows],
            weights=batch.weights[rows] if batch.weights is not None else None,
        )
        if isinstance(changed, RawBatch) and changed.augmentation is not None:
            draws, aspect = changed.augmentation.draws.of_pictures(rows), changed.augmentation.aspect[rows]
            return changed._replace(augmentation=AugmentationInput(draws, aspect))
        return changed


def unreadable_images(folder: Path) -> list[BadFile]:
    """The images of the shards in `folder` that could not be decoded, in all runs of this machine."""
    found = {}
    with suppress(OSError), (folder / UNREADABLE).open(encoding="utf-8") as file:
        for line in file:
            with suppress(ValueError):  # of a process that was killed while it wrote
                name, reason = json.loads(line)
                found[name] = reason
    return [BadFile(Path(name), reason) for name, reason in found.items()]
