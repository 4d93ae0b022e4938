"""Mean and standard deviation of the training pictures, exactly."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import torch

from imgcls.data.stores.store import Store
from imgcls.errors import UserError
from imgcls.system.files import atomic_write_text

CHUNK = 1024


def channel_statistics(store: Store) -> tuple[list[float], list[float]]:
    """(means, stds) of red, green and blue in 0..1 over all pixels of a store, in one pass.

    Pixels are counted by value, so the sums are exact integers whatever the order, and only the last step is float64.
    Kept beside a store on disk.
    """
    kept = store.folder / "statistics.json" if store.folder is not None else None
    if kept is not None and kept.is_file():
        known = json.loads(kept.read_text())
        return known["mean"], known["std"]
    mean, std = statistics_of_counts(_count(store))
    if kept is not None:
        with contextlib.suppress(OSError, UserError):  # a cache that cannot be written is none
            atomic_write_text(kept, json.dumps({"mean": mean, "std": std}))
    return mean, std


def _count(store: Store) -> np.ndarray:
    """How often each value occurs, int64 (3, 256)."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for positions in torch.arange(len(store)).split(CHUNK):
        pixels = store.gather(positions).cpu()
        for channel in range(3):
            counts[channel] += np.bincount(pixels[:, channel].reshape(-1).numpy(), minlength=256)
    return counts


def statistics_of_counts(counts: np.ndarray) -> tuple[list[float], list[float]]:
    """The same from how often each value occurs, int64 (3, 256)."""
    values = np.arange(256)
    total = counts.sum(1)
    mean = (counts * values).sum(1) / total
    variance = (counts * values**2).sum(1) / total - mean**2
    return (mean / 255).tolist(), (np.sqrt(np.maximum(variance, 0)) / 255).tolist()
