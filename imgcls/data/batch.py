"""A batch on its way to the device, and as the model takes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imgcls.data.randomness import Draws


class Batch(NamedTuple):
    """The input of the model."""

    images: Tensor
    """float32 (N, 3, H, W), augmented in training, normalised."""
    labels: Tensor
    """int64 (N,); float32 (N, C) in training with mixing; uint8 (N, C) where an image can have several labels."""
    index: Tensor  # type: ignore[assignment]  # replaces a method of tuples that is not needed
    """int64 (N,), positions in the split."""
    weights: Tensor | None = None
    """float32 (N,), of the images in the training loss; None: all are equal."""


class AugmentationInput:
    """The input of augmentation for each image; stays on the CPU, see Draws."""

    def __init__(self, draws: Draws, aspect: Tensor) -> None:
        self.draws = draws
        self.aspect = aspect  # float32 (N,): width / height of the original


class RawBatch(NamedTuple):
    """The batch that is sent to the device, in as few bytes as possible."""

    images: Tensor
    """uint8 (N, 3, H, W), as in the store."""
    labels: Tensor
    """int64 (N,)."""
    index: Tensor  # type: ignore[assignment]
    """int64 (N,), positions in the split."""
    augmentation: AugmentationInput | None
    """None in evaluation."""
    weights: Tensor | None = None
    """float32 (N,), of the images in the training loss."""


BLOCKING = ("cpu", "mps")  # where an asynchronous copy gains nothing, or has been observed to go wrong


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`, without waiting for the device's pending work, as `.to(device)` would."""
    return values.to(device, non_blocking=device.type not in BLOCKING)
