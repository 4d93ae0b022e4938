"""Stores of pixels: decoded once into memory, into a file that all processes map, or to the device; or for each batch.

The kind of store never changes the content of a batch, only how fast it is loaded.
"""

from __future__ import annotations

import copy
import io
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imgcls.data.batch import send
from imgcls.data.checks import inspect_together
from imgcls.data.crops import Layout
from imgcls.data.sharding.members import MembersIn
from imgcls.data.sources import Split
from imgcls.data.stores.checksums import Checker
from imgcls.data.stores.readahead import read_ahead
from imgcls.data.threads import map_with_bar, pool
from imgcls.errors import UserError
from imgcls.images.channels import RGB, STEP, Depth, Planes
from imgcls.images.decoding import BadPicture
from imgcls.images.paths import read_member
from imgcls.images.preprocessing import INTERPOLATIONS, PAD_COLOUR, Preprocessing, Size, as_size, sides

log = logging.getLogger(__name__)

SAMPLED_FILES = 256


@dataclass(frozen=True)
class Recipe:
    """How an image becomes the pixels in a store."""

    layout: Layout
    side: Size
    """Side of the square, or (height, width), px."""
    resize: int
    """Shorter side before the centre crop, px; not used by the layout `squash`."""
    interpolation: str
    fit: str = "crop"
    pad_colour: tuple[int, int, int] = PAD_COLOUR
    depth: Depth = RGB

    @cached_property
    def _centre(self) -> Preprocessing:
        channels, bits = self.depth
        fit = {"fit": self.fit, "pad_colour": self.pad_colour}
        return Preprocessing(self.side, self.resize, self.interpolation, channels=channels, bits=bits, **fit)  # type: ignore[arg-type]

    def read(self, split: Split, position: int) -> tuple[np.ndarray, float]:
        """The pixels of an image of `split`, uint8 (H, W, 3), and its width / height. Raises BadPicture."""
        if self.depth != RGB:
            planes = split.open_planes(position, self.depth)
            return self.pixels(planes), planes.width / planes.height
        if self.layout == "squash":  # for training alone: evaluation's pixels are exact
            pixels, aspect = split.open_scaled(position, max(sides(self.side)))
            return self._squash(pixels), aspect
        picture = split.open(position)
        return self.pixels(picture), picture.width / picture.height

    def pixels(self, picture: Image.Image | Planes) -> np.ndarray:
        """The pixels of `picture`, uint8 (H, W, 3), or of other channels and bits."""
        if self.layout == "centre":
            return self._centre.pixels(picture)
        if isinstance(picture, Image.Image):
            return self._squash(np.asarray(picture))
        height, width = sides(self.side)
        if picture.size == (width, height):
            return np.asarray(picture)
        return np.asarray(picture.resize((width, height), INTERPOLATIONS[self.interpolation]))

    def _squash(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) pixels at the size of the recipe."""
        height, width = sides(self.side)
        if pixels.shape[:2] == (height, width):
            return pixels
        if self.interpolation in ("bilinear", "bicubic"):
            # antialiased like Pillow, in half the time; training pixels need not equal the portable model's exactly
            images = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)[None]
            resized = F.interpolate(images, size=(height, width), mode=self.interpolation, antialias=True)
            return resized[0].permute(1, 2, 0).numpy()
        return np.asarray(Image.fromarray(pixels).resize((width, height), INTERPOLATIONS[self.interpolation]))

    def shape(self, count: int) -> tuple[int, int, int, int]:
        """Shape of the array of `count` images."""
        return count, *sides(self.side), self.depth.channels

    def nbytes(self, count: int) -> int:
        """Bytes of `count` images."""
        return math.prod(self.shape(count)) * np.dtype(self.depth.type).itemsize


def evaluation_recipe(preprocessing: Preprocessing) -> Recipe:
    """The recipe for exactly the pixels of the portable model."""
    return Recipe(
        "centre",
        preprocessing.image_size,
        preprocessing.resize,
        preprocessing.interpolation,
        preprocessing.fit,
        preprocessing.pad_colour,
        preprocessing.depth,
    )


def training_recipe(split: Split, layout: Layout, preprocessing: Preprocessing) -> Recipe:
    """The recipe for training images.

    Squashed images are a little larger than the model's input, so that crops are rarely enlarged, but never larger than
    the originals. Where evaluation keeps the whole image, padded or squashed to the model's aspect ratio, they are too,
    so that crops show things in the same proportions. Small square images of one size are stored as they are, and
    enlarged on the device.
    """
    size, sizes = max(preprocessing.shape), picture_sizes(split)
    largest = max((max(pair) for pair in sizes), default=size)
    if layout == "squash" and preprocessing.fit != "crop":
        height, width = (max(1, min(round(1.14 * side), round(largest * side / size))) for side in preprocessing.shape)
        return replace(evaluation_recipe(preprocessing), side=as_size((height, width)))
    if layout == "squash":
        side = min(round(1.14 * size), largest)
        return Recipe("squash", side, side, preprocessing.interpolation, depth=preprocessing.depth)
    if len(sizes) == 1 and preprocessing.resize == preprocessing.image_size:
        width, height = next(iter(sizes))
        if width == height < size:
            return Recipe("centre", width, width, preprocessing.interpolation, depth=preprocessing.depth)
    return evaluation_recipe(preprocessing)


def picture_sizes(split: Split) -> set[tuple[int, int]]:
    """The (width, height) that occur: by the index of shards, or the headers of 256 files spread over the split."""
    if isinstance(split.pictures, np.ndarray):
        return {(split.pictures.shape[2], split.pictures.shape[1])} if len(split) else set()
    if isinstance(split.pictures, MembersIn) and split.pictures.sizes is not None:
        widths, heights = split.pictures.sizes.T.astype(np.int64)  # one number each: pairs are sorted far more slowly
        return {divmod(size, 1 << 32) for size in np.unique(widths << 32 | heights).tolist()}
    sizes = set()
    for path in split.pictures[:: max(1, len(split) // SAMPLED_FILES)]:
        try:
            member = read_member(str(path))
            file = path if member is None else io.BytesIO(member)
            if path.suffix.lower() == ".npy":
                array = np.load(file, mmap_mode="r" if member is None else None, allow_pickle=False)
                height, width = sorted(array.shape)[-2:]
                sizes.add((width, height))
                continue
            with Image.open(file) as picture:
                sizes.add(picture.size)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # reported when it is decoded
    return sizes


CHECK_EVERY_BATCHES = 64  # reading 16 MB this often takes no noticeable time


class Store(Protocol):
    """The pixels of one split."""

    bad: tuple[tuple[int, str], ...]
    """(position, reason) of unreadable images of the split. The positions of `gather` do not count them."""
    aspects: np.ndarray
    """float32 (N,): width / height of the original images."""
    folder: Path | None
    """The folder of a store on disk."""

    def __len__(self) -> int: ...

    def gather(self, positions: Tensor, *, pin: bool = False) -> Tensor:
        """uint8 (n, 3, H, W), in channels_last order, of the images at `positions`, int64 (n,).

        Pixels of 16 bits are float32, scaled to 0..255.
        """


class ArrayStore:
    """Pixels in one array: in memory, or mapped from a file.

    Args:
        pixels: uint8 (rows, side, side, 3).
        aspects: float32 (rows,), width / height of the originals.
        bad: rows without an image, and why.
        folder: the folder of an array on disk.
        checker: compares the file with its checksums while it is read.
        held: kept open as long as the store is used; see `imgcls.system.cache.hold`.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        aspects: np.ndarray,
        bad: Sequence[tuple[int, str]] = (),
        folder: Path | None = None,
        checker: Checker | None = None,
        held: IO[bytes] | None = None,
    ) -> None:
        self.pixels, self.bad, self.folder = pixels, tuple(bad), folder
        self._checker, self._gathered, self._held = checker, 0, held
        self.rows = np.delete(np.arange(len(pixels)), [row for row, _ in self.bad])
        self.aspects = aspects[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, positions: Tensor, *, pin: bool = False) -> Tensor:
        self._gathered += 1
        if self._checker is not None and self._gathered % CHECK_EVERY_BATCHES == 0 and not self._checker.next_matches():
            raise UserError(f"{self.folder} is damaged: its pixels have changed on disk. Remove it.")
        rows = self.rows[positions.numpy()]
        read_ahead(self.pixels, rows)
        if self.pixels.dtype == np.uint16:
            return _from_16_bits(self.pixels[rows], pin)
        out = torch.empty((len(rows), *self.pixels.shape[1:]), dtype=torch.uint8, pin_memory=pin)
        # numpy's take runs in the loader's thread without starting torch's threads, which the model needs
        np.take(self.pixels, rows, axis=0, out=out.numpy(), mode="clip")
        return out.permute(0, 3, 1, 2)


def _from_16_bits(pixels: np.ndarray, pin: bool) -> Tensor:
    """uint16 (n, H, W, C) as float32 (n, C, H, W) in 0..255, with which everything after the store computes."""
    values = pixels.astype(np.float32)
    values /= STEP
    images = torch.from_numpy(values)
    return (images.pin_memory() if pin else images).permute(0, 3, 1, 2)


class PartOfStore:
    """The images of another store at `places`, int64 (n,), which count as positions without unreadable images."""

    def __init__(self, store: Store, places: np.ndarray) -> None:
        self.bad: tuple[tuple[int, str], ...] = ()
        self.aspects, self.folder = store.aspects[places], store.folder
        self._store, self._places = store, torch.from_numpy(places)

    def __len__(self) -> int:
        return len(self._places)

    def gather(self, positions: Tensor, *, pin: bool = False) -> Tensor:
        return self._store.gather(self._places[positions], pin=pin)


def part_of_store(store: Store, places: np.ndarray) -> Store:
    """The images of `store` at `places`, int64 (n,), without a copy of their pixels."""
    if not isinstance(store, ArrayStore):
        return PartOfStore(store, places)
    part = copy.copy(store)
    part.rows, part.aspects, part.bad = store.rows[places], store.aspects[places], ()
    return part


class DeviceStore:
    """Pixels on the device of the model."""

    def __init__(self, store: ArrayStore, device: torch.device) -> None:
        self.bad, self.aspects, self.folder = store.bad, store.aspects, store.folder
        good = store.pixels if len(store.rows) == len(store.pixels) else store.pixels[store.rows]
        # a private mapping or a copy: torch needs writable memory
        self._pixels = torch.from_numpy(np.array(good, copy=not good.flags.writeable or None)).to(device)

    def __len__(self) -> int:
        return len(self.aspects)

    def gather(self, positions: Tensor, *, pin: bool = False) -> Tensor:
        return self._pixels.index_select(0, send(positions, self._pixels.device)).permute(0, 3, 1, 2)


class DecodingStore:
    """Stores no pixels: decodes the images of each batch in threads.

    Every image is decoded once before, so that unreadable ones are known before training; the findings are cached in
    the folder `cache`, see checks.inspect. Several `processes` on this machine look at a part each.
    """

    folder: Path | None = None

    def __init__(self, split: Split, recipe: Recipe, workers: int, cache: Path, processes: int = 1) -> None:
        self.recipe, self.workers = recipe, workers
        findings = inspect_together(split.pictures, cache, max(1, workers // processes), recipe.depth, processes)
        self.bad = tuple((position, reason) for position, reason in enumerate(findings.reasons) if reason)
        good = np.delete(np.arange(len(split)), [position for position, _ in self.bad])
        self.split = split.subset(good) if self.bad else split  # whose names processes may share
        self.aspects = (findings.sizes[good, 0] / findings.sizes[good, 1]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.split)

    def gather(self, positions: Tensor, *, pin: bool = False) -> Tensor:
        deep = self.recipe.depth.bits == 16
        kind = torch.uint16 if deep else torch.uint8
        out = torch.empty(self.recipe.shape(len(positions)), dtype=kind, pin_memory=pin and not deep)
        target = out.numpy()

        def decode(row: int, position: int) -> None:
            try:
                target[row], _ = self.recipe.read(self.split, position)
            except BadPicture as error:
                self._handle_bad(position, error)
                target[row] = 0

        for _ in pool(self.workers).map(decode, range(len(positions)), positions.tolist()):
            pass
        return _from_16_bits(target, pin) if deep else out.permute(0, 3, 1, 2)

    def _handle_bad(self, position: int, error: BadPicture) -> None:
        name = self.split.names[position]
        raise UserError(f"{name} could be read before training, but not now: {error.reason}.") from error


def decode_all(
    split: Split, recipe: Recipe, out: np.ndarray, aspects: np.ndarray, workers: int
) -> list[tuple[int, str]]:
    """Decode every image of `split`, see `decode_rows`; (position, reason) of those that cannot be read."""
    rows = range(len(split))
    return [(row, reason) for row, reason in decode_rows(split, recipe, out, aspects, workers, rows) if reason]


def decode_rows(
    split: Split,
    recipe: Recipe,
    out: np.ndarray,
    aspects: np.ndarray,
    workers: int,
    rows: Iterable[int],
    count: int | None = None,
) -> Iterator[tuple[int, str | None]]:
    """Decode images of `split` into their rows of `out`, uint8 (N, side, side, 3), in threads.

    Pillow decodes and resizes without the GIL, so that threads are as fast as processes and write directly into `out`.

    Args:
        split, recipe: which images, and how.
        out: filled.
        aspects: filled, float32 (N,).
        workers: threads.
        rows: positions of the images; where it is no sequence, up to `count`.

    Yields:
        Each row when it is filled, in order, with the reason if the image cannot be read.
    """

    def decode(row: int) -> tuple[int, str | None]:
        try:
            out[row], aspects[row] = recipe.read(split, row)
        except BadPicture as error:
            return row, error.reason
        return row, None

    count = len(rows) if isinstance(rows, Sequence) else count
    return map_with_bar(decode, rows, workers, f"Decoding {count:,} images", count)
