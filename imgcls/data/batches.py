"""What a loader calls for each batch: the pixels of a store with labels, weights and what augmentation needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from imgcls.data.batch import AugmentationInput, Batch, RawBatch
from imgcls.data.randomness import Draws
from imgcls.data.sources import Split
from imgcls.data.stores.store import Store

Load = Callable[[Tensor, Tensor, int], RawBatch | Batch]
"""Takes positions, draws and the epoch."""


def batches_of(store: Store, split: Split, *, pin: bool, seed: int, aspects: Tensor | None) -> Load:
    """A function that makes the batch of given images.

    Args:
        store: their pixels.
        split: their labels and weights.
        pin: in page-locked memory, for a GPU.
        seed: of the augmentation.
        aspects: float32 (N,), width / height of what the pixels show, for training; None: no augmentation.
    """
    labels, weights = torch.from_numpy(split.labels), scaled_weights(split)

    def load(positions: Tensor, draws: Tensor, epoch: int) -> RawBatch | Batch:
        augmentation = (
            AugmentationInput(Draws.of(seed, epoch, draws), aspects[positions]) if aspects is not None else None
        )
        return RawBatch(
            store.gather(positions, pin=pin), labels[positions], positions, augmentation, weights(positions)
        )

    return load


def scaled_weights(split: Split) -> Callable[[Tensor], Tensor | None]:
    """The weights of the images of a split at given positions, float32 (n,), with a mean of 1 over the split."""
    if split.weights is None:
        return lambda positions: None
    scaled = torch.from_numpy(split.weights / split.weights.mean())
    return lambda positions: scaled[positions]
