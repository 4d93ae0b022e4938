"""Choose where decoded pixels are kept: in memory, on disk, on the device, or nowhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from imgcls.data.sharding.members import StreamedMembers
from imgcls.data.sources import Split
from imgcls.data.stores.compressed import EXPECTED_SHARE, build_compressed, open_compressed
from imgcls.data.stores.disk import build_on_disk, open_on_disk, store_key
from imgcls.data.stores.store import ArrayStore, DecodingStore, DeviceStore, Recipe, Store, decode_all
from imgcls.data.stores.streamed import StreamedStore
from imgcls.errors import UserError
from imgcls.images.channels import RGB
from imgcls.system.files import disk_use
from imgcls.system.machine import DISK_SHARE, free_memory, spare_disk
from imgcls.system.text import format_bytes

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.5  # of the free memory; the model and the page cache need the rest
DEVICE_SHARE = 0.2  # of the free device memory, with `auto`; activations take most of it
FEW_IMAGES = 1000  # up to this number, decoding is quicker than managing a store on disk


def open_store(
    split: Split,
    recipe: Recipe,
    kind: str = "auto",
    *,
    cache: Path,
    title: str = "",
    workers: int = 1,
    processes: int = 1,
    quality: int = 90,
    on_bad: str = "skip",
) -> Store:
    """The pixels of `split`, in a store of this `kind` if there is room for it, else in another one.

    `auto` uses the disk, where the next run and the trials of a sweep find the store, and memory for few images, for
    images that are in memory anyway, and if the disk is full; without room for pixels it stores JPEGs, and without room
    for these it decodes each image again in every epoch. JPEGs are for squashed training images alone: evaluation's
    pixels are exact. For `device` see `on_device`. Shards that are fetched in turn always have a StreamedStore.

    Args:
        kind: `auto`, `memory`, `disk`, `device`, `jpeg` or `none`.
        cache: folder of the stores on disk.
        title: name of the images, for the log.
        workers: threads that decode.
        processes: processes on this machine that open the same store; in memory each would have its own, on disk each
            decodes a part.
        quality: of JPEGs, 1 to 100.
        on_bad: `error` where an image that cannot be read ends the training, as far as it is only found then.
    """
    if isinstance(split.pictures, StreamedMembers):
        return StreamedStore(split, recipe, max(1, workers // processes), on_bad)
    if kind == "device" or (kind == "jpeg" and not _compressible(recipe)):
        kind = "auto"
    if (
        isinstance(split.pictures, np.ndarray)
        and split.pictures.shape[1:] == recipe.shape(0)[1:]
        and recipe.depth == RGB
        and kind not in ("disk", "jpeg")
    ):
        return ArrayStore(split.pictures, np.ones(len(split), dtype=np.float32))
    size = recipe.nbytes(len(split))
    full: list[str] = []  # places without room
    for place in _places(kind, len(split), processes):
        if place == "none":
            break
        if place == "jpeg":
            if _compressible(recipe) and (
                compressed := _compress(
                    split, recipe, cache, title, max(1, workers // processes), quality, _because(size, full)
                )
            ):
                return compressed
            continue
        if place == "disk":
            folder = cache / "stores" / store_key(split, recipe, cache)
            found = open_on_disk(folder, len(split), recipe)
            if found is not None:
                log.info("%s: %s of decoded pixels found in %s.", title, format_bytes(size), folder)
                return found
            free, share = spare_disk(cache), DISK_SHARE
            needed = size - disk_use(folder.with_suffix(".partial"))
        else:
            free, share, needed = free_memory() // processes, MEMORY_SHARE, size
        if needed > share * free:
            full.append(f"{format_bytes(free)} of free {place}{' (imgcls cache prune)' if place == 'disk' else ''}")
            if kind != "auto":
                log.warning("%s: data.store=%s has no room%s.", title, kind, _because(size, full[-1:]))
            continue
        few = kind == "auto" and not full  # memory comes first for few images alone
        in_memory = f"in memory, as up to {FEW_IMAGES:,} images need no file" if few else "in memory"
        where = in_memory if place == "memory" else f"on disk, in {folder}, where the next run finds them"
        images = f"{len(split):,}"
        log.info(
            "%s: decoding %s images once, %s %s%s.", title, images, format_bytes(size), where, _because(size, full)
        )
        if place == "memory":
            pixels = np.empty(recipe.shape(len(split)), dtype=recipe.depth.type)
            aspects = np.ones(len(split), dtype=np.float32)
            return ArrayStore(pixels, aspects, decode_all(split, recipe, pixels, aspects, workers))
        try:
            return build_on_disk(folder, split, recipe, max(1, workers // processes))
        except (OSError, UserError) as error:
            log.warning("%s: no store on disk. %s", title, error)
    log.info("%s: no store; each image is decoded in every epoch%s.", title, _because(size, full))
    return DecodingStore(split, recipe, workers, cache, processes)


def _because(size: int, full: Sequence[str]) -> str:
    """Why pixels of `size` bytes are not where they would be read faster: these places are too `full`."""
    return f": decoded pixels of {format_bytes(size)} are too many for {' and '.join(full)}" if full else ""


def _compressible(recipe: Recipe) -> bool:
    """Whether the images may be JPEGs: of training, whose pixels need not be exact, and RGB."""
    return recipe.layout == "squash" and recipe.depth == RGB


def _compress(
    split: Split, recipe: Recipe, cache: Path, title: str, workers: int, quality: int, reason: str
) -> Store | None:
    """The images as JPEGs on disk; None where there is no room for them."""
    folder = cache / "stores" / f"{store_key(split, recipe, cache)}-jpeg{quality}"
    found = open_compressed(folder, recipe, workers)
    if found is not None:
        log.info("%s: compressed images found in %s.", title, folder)
        return found
    size, free = int(EXPECTED_SHARE * recipe.nbytes(len(split))), spare_disk(cache)
    if size - disk_use(folder.with_suffix(".partial")) > DISK_SHARE * free:
        log.info(
            "%s: compressed images need about %s, too much for the %s of free disk.",
            title,
            *map(format_bytes, (size, free)),
        )
        return None
    images = f"{len(split):,}"
    log.info(
        "%s: compressing %s images once, about %s on disk, in %s%s.", title, images, format_bytes(size), folder, reason
    )
    try:
        return build_compressed(folder, split, recipe, workers, quality)
    except (OSError, UserError) as error:
        log.warning("%s: no compressed store. %s", title, error)
        return None


def on_device(store: Store, kind: str, device: torch.device) -> Store:
    """`store`, or its pixels on a CUDA `device` if they fit; with `auto`, if they fit into a small share of it."""
    if kind not in ("auto", "device") or not isinstance(store, ArrayStore) or store.pixels.dtype != np.uint8:
        return store
    if device.type != "cuda":
        if kind == "device":
            log.info("data.store=device is ignored: the model is not on a CUDA device.")
        return store
    size, free = store.pixels.nbytes, torch.cuda.mem_get_info(device)[0]
    if size <= free * (1 if kind == "device" else DEVICE_SHARE):
        return DeviceStore(store, device)
    if kind == "device":
        log.warning(
            "data.store=device: %s of pixels do not fit into %s of free device memory.",
            format_bytes(size),
            format_bytes(free),
        )
    return store


def _places(kind: str, count: int, processes: int) -> tuple[str, ...]:
    """The places to try, in this order; the last one always has room."""
    few = count <= FEW_IMAGES and processes == 1
    places = {
        "auto": ("memory", "disk", "jpeg", "none") if few else ("disk", "memory", "jpeg", "none"),
        "memory": ("memory", "disk", "none"),
        "disk": ("disk", "memory", "none"),
        "jpeg": ("jpeg", "none"),
        "none": ("none",),
    }
    return places[kind]
