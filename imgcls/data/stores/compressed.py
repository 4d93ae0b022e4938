"""A store of JPEGs at the store's size: a tenth of the bytes, decoded again in each epoch, of training images."""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgcls.data.sources import Split
from imgcls.data.stores.store import Recipe
from imgcls.data.stores.together import Bad, Blocks, allocate_blocks, build_together
from imgcls.data.threads import map_with_bar, pool
from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture
from imgcls.images.jpeg import decode_jpeg
from imgcls.system.cache import hold
from imgcls.system.files import take_lock

IMAGES, PLACES, DESCRIPTION = "images.jpegs", "places.npy", "store.json"
PLACE = np.dtype([("start", np.int64), ("end", np.int64), ("aspect", np.float32)])  # of an image in the file of all
BLOCK_ROWS = 512  # images that a process compresses at a time, and that a kill loses
EXPECTED_SHARE = 0.2  # of the decoded bytes; photographs of quality 90 take 0.1 to 0.15


class CompressedStore:
    """JPEGs in one mapped file, which threads decode for each batch.

    Args:
        folder: of the store.
        recipe: the size of the images.
        workers: threads.
    """

    def __init__(self, folder: Path, recipe: Recipe, workers: int) -> None:
        self.folder: Path | None = folder
        self.recipe, self.workers = recipe, workers
        self._held: IO[bytes] = hold(folder / DESCRIPTION)
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
        places = np.load(folder / PLACES)
        with (folder / IMAGES).open("rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._file) != description["bytes"]:
            raise ValueError(f"{folder} is incomplete")
        self.bad = tuple((int(position), str(reason)) for position, reason in description["bad"])
        self._places = np.delete(places, [row for row, _ in self.bad])
        self.aspects = self._places["aspect"].copy()

    def __len__(self) -> int:
        return len(self._places)

    def gather(self, positions: Tensor, *, pin: bool = False) -> Tensor:
        """See `Store.gather`."""
        places = self._places[positions.numpy()]
        out = torch.empty(self.recipe.shape(len(places)), dtype=torch.uint8, pin_memory=pin)
        target = out.numpy()
        _, height, width, _ = target.shape

        def decode(place: int, start: int, end: int) -> None:
            content = self._file[start:end]
            pixels = decode_jpeg(content, (width, height))
            if pixels is not None:
                target[place] = pixels
                return
            try:
                with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                    target[place] = image
            except (OSError, ValueError, SyntaxError) as error:
                raise UserError(f"{self.folder} is damaged: {error}. Remove it.") from error

        parts = range(len(places)), places["start"].tolist(), places["end"].tolist()
        for _ in pool(self.workers).map(decode, *parts):
            pass
        return out.permute(0, 3, 1, 2)


def open_compressed(folder: Path, recipe: Recipe, workers: int) -> CompressedStore | None:
    """The store in `folder`; None if it is missing or incomplete."""
    try:
        store = CompressedStore(folder, recipe, workers)
    except Exception:  # whatever is wrong with it, it can be built again
        return None
    return store


def build_compressed(folder: Path, split: Split, recipe: Recipe, workers: int, quality: int) -> CompressedStore:
    """Open the store in `folder`; build it first, together with the other processes that need it, if it is missing.

    Args:
        folder: named after everything that its content depends on.
        split, recipe: which images, and how.
        workers: threads.
        quality: of the JPEGs, 1 to 100.

    Raises:
        OSError: the disk is full.
    """
    count = len(split)

    def allocate(partial: Path) -> None:
        (partial / IMAGES).touch()
        np.save(partial / PLACES, np.zeros(count, dtype=PLACE))
        allocate_blocks(partial, count, BLOCK_ROWS)

    def complete(partial: Path, bad: Bad) -> None:
        size = (partial / IMAGES).stat().st_size
        (partial / DESCRIPTION).write_text(json.dumps({"bytes": size, "quality": quality, "bad": bad}))

    return build_together(
        folder,
        find=lambda: open_compressed(folder, recipe, workers),
        allocate=allocate,
        fill=lambda partial: _encode_blocks(partial, split, recipe, workers, quality),
        complete=complete,
    )


def _encode_blocks(partial: Path, split: Split, recipe: Recipe, workers: int, quality: int) -> None:
    """Encode the blocks that no other process is at work on, each of which is appended to the file of all."""

    def encode(row: int) -> tuple[int, bytes, float, str | None]:
        try:
            pixels, aspect = recipe.read(split, row)
        except BadPicture as error:
            return row, b"", 1.0, error.reason
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
        return row, buffer.getvalue(), aspect, None

    with contextlib.ExitStack() as stack:
        places = stack.enter_context((partial / PLACES).open("r+b", buffering=0))
        header = (partial / PLACES).stat().st_size - len(split) * PLACE.itemsize
        blocks = stack.enter_context(Blocks(partial, len(split), BLOCK_ROWS))
        encoded = map_with_bar(encode, blocks.claim(), workers, f"Compressing {blocks.left:,} images", blocks.left)
        stack.enter_context(contextlib.closing(encoded))  # type: ignore[type-var]
        images: list[bytes] = []
        aspects: list[float] = []
        for row, content, aspect, reason in encoded:
            images.append(content)
            aspects.append(aspect)
            if (rows := blocks.completed_by(row, reason)) is not None:
                own = np.zeros(len(images), dtype=PLACE)
                own["end"] = _append(partial / IMAGES, b"".join(images)) + np.cumsum([len(image) for image in images])
                own["start"] = own["end"] - [len(image) for image in images]
                own["aspect"] = aspects
                os.pwrite(places.fileno(), own.tobytes(), header + rows.start * PLACE.itemsize)
                blocks.record(rows)
                images, aspects = [], []


def _append(file: Path, content: bytes) -> int:
    """Write to the end of a file to which other processes write too; return where. What a killed one wrote stays."""
    with file.open("ab") as opened:
        take_lock(opened, wait=True)
        start = opened.seek(0, os.SEEK_END)
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    return start
