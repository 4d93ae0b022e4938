"""Where decoded pixels are held: the choice between memory, disk, device and nowhere."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from imgcls.data.sources import Split
from imgcls.data.stores.disk import DISK_SHARE, build_on_disk, open_on_disk, store_key
from imgcls.data.stores.store import ArrayStore, DecodingStore, DeviceStore, Recipe, Store, decode_all
from imgcls.errors import UserError
from imgcls.system.machine import free_disk, free_memory

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.5  # of what is free: the model and the page cache want theirs
DEVICE_SHARE = 0.2  # with `auto`; activations take most of a device
QUICK = 1000  # so few pictures are decoded again sooner than they are looked after on disk


def open_store(
    split: Split,
    recipe: Recipe,
    kind: str = "auto",
    *,
    cache: Path,
    title: str = "",
    workers: int = 1,
    processes: int = 1,
) -> Store:
    """The pixels of `split`, held as `kind` says, or as the machine can where it cannot.

    `auto` takes the disk, where a store is found again by the next run and by the trials of a sweep, and memory where
    there are few pictures, they are in memory anyhow, or the disk is short; where memory is short too, it holds nothing
    and decodes each picture anew in every epoch. For `device` see `on_device`.

    Args:
        kind: `auto`, `memory`, `disk`, `device` or `none`.
        cache: folder of the stores on disk.
        title: what the pictures are, for the log.
        workers: threads that decode.
        processes: how many on this machine open the same store; in memory each would hold its own.
    """
    if kind == "device":
        kind = "auto"
    if isinstance(split.pictures, np.ndarray) and split.pictures.shape[1:] == recipe.shape(0)[1:] and kind != "disk":
        return ArrayStore(split.pictures, np.ones(len(split), dtype=np.float32))
    size = recipe.nbytes(len(split))
    for choice in _choices(kind, len(split), processes):
        if choice == "none":
            break
        if choice == "disk":
            folder = cache / "stores" / store_key(split, recipe)
            found = open_on_disk(folder, len(split), recipe)
            if found is not None:
                log.info("%s: %s of decoded pixels found in %s.", title, _bytes(size), folder)
                return found
            free, share = free_disk(cache), DISK_SHARE
        else:
            free, share = free_memory() // processes, MEMORY_SHARE
        if size > share * free:
            log.log(
                logging.INFO if kind == "auto" else logging.WARNING,
                "%s: decoded pixels need %s, too much for the %s of free %s.",
                *(title, _bytes(size), _bytes(free), choice),
            )
            continue
        place = "in memory" if choice == "memory" else f"on disk, in {folder}"
        log.info("%s: decoding %s pictures once, %s %s.", title, f"{len(split):,}", _bytes(size), place)
        if choice == "memory":
            return build_in_memory(split, recipe, workers)
        try:
            return build_on_disk(folder, split, recipe, workers)
        except (OSError, UserError) as error:
            log.warning("%s: no store on disk. %s", title, error)
    log.info("%s: no store; each picture is decoded in every epoch.", title)
    return DecodingStore(split, recipe, workers, cache)


def on_device(store: Store, kind: str, device: torch.device) -> Store:
    """`store`, or its pixels on a CUDA `device`: if `kind` is `device` and they fit, or `auto` and they fit easily."""
    if kind not in ("auto", "device") or not isinstance(store, ArrayStore):
        return store
    if device.type != "cuda":
        if kind == "device":
            log.info("data.store=device: the model is on no CUDA device, so its pixels are not either.")
        return store
    size, free = store.pixels.nbytes, torch.cuda.mem_get_info(device)[0]
    if size <= free * (1 if kind == "device" else DEVICE_SHARE):
        return DeviceStore(store, device)
    if kind == "device":
        log.warning("data.store=device: %s of pixels do not fit %s of free device memory.", _bytes(size), _bytes(free))
    return store


def _choices(kind: str, count: int, processes: int) -> tuple[str, ...]:
    """What to try, best first; the last one always works."""
    if kind == "auto":
        return ("memory", "disk", "none") if count <= QUICK and processes == 1 else ("disk", "memory", "none")
    return {"memory": ("memory", "disk", "none"), "disk": ("disk", "memory", "none"), "none": ("none",)}[kind]


def build_in_memory(split: Split, recipe: Recipe, workers: int) -> ArrayStore:
    """All pictures of `split` as one array."""
    out, aspects = np.empty(recipe.shape(len(split)), dtype=np.uint8), np.ones(len(split), dtype=np.float32)
    return ArrayStore(out, aspects, decode_all(split, recipe, out, aspects, workers))


def _bytes(size: int) -> str:
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} bytes"
