"""Exact mean and standard deviation of the training images."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import torch

from imgcls.data.stores.store import Store
from imgcls.errors import UserError
from imgcls.images.channels import STEP
from imgcls.system.files import atomic_write_text

CHUNK_IMAGES = 1024


def channel_statistics(store: Store) -> tuple[list[float], list[float]]:
    """(means, stds) of the channels in 0..1 over all pixels of a store, in one pass.

    Pixels are counted by value, so the sums are exact integers in any order, and only the last step is in float64.
    The result is saved with a store on disk.
    """
    file = store.folder / "statistics.json" if store.folder is not None else None
    if file is not None and file.is_file():
        saved = json.loads(file.read_text())
        return saved["mean"], saved["std"]
    counts = _count(store)
    values = np.arange(counts.shape[1]) * (255 / (counts.shape[1] - 1))
    total = counts.sum(1)
    means = (counts * values).sum(1) / total
    variances = (counts * values**2).sum(1) / total - means**2
    mean, std = (means / 255).tolist(), (np.sqrt(np.maximum(variances, 0)) / 255).tolist()
    if file is not None:
        with contextlib.suppress(OSError, UserError):  # works without the saved file too
            atomic_write_text(file, json.dumps({"mean": mean, "std": std}))
    return mean, std


def _count(store: Store) -> np.ndarray:
    """Number of pixels per channel and value, int64 (C, 256), or (C, 65536) of 16 bits."""
    counts = None
    for positions in torch.arange(len(store)).split(CHUNK_IMAGES):
        pixels = store.gather(positions).cpu()
        if pixels.is_floating_point():
            pixels = (pixels * STEP).round().to(torch.int64)
        if counts is None:
            counts = np.zeros((pixels.shape[1], 256 if pixels.dtype == torch.uint8 else 65536), dtype=np.int64)
        for channel, row in enumerate(counts):
            row += np.bincount(pixels[:, channel].reshape(-1).numpy(), minlength=len(row))
    assert counts is not None
    return counts
