"""A batch on its way to the model, and as the model gets it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imgcls.data.randomness import Draws


class Batch(NamedTuple):
    """What the model is given."""

    images: Tensor
    """float32 (N, 3, S, S), augmented in training, normalised."""
    labels: Tensor
    """int64 (N,); in training with mixing float32 (N, C)."""
    index: Tensor  # type: ignore[assignment]  # a tuple has a method of that name, which nobody misses
    """int64 (N,), positions in the split."""


class Fate:
    """What augmentation wants to know of each picture; stays on the CPU, see Draws."""

    def __init__(self, draws: Draws, aspect: Tensor) -> None:
        self.draws = draws
        self.aspect = aspect  # float32 (N,): width / height of the original


class RawBatch(NamedTuple):
    """What travels to the device: as few bytes as can be."""

    images: Tensor
    """uint8 (N, 3, H, W), as the store holds them."""
    labels: Tensor
    """int64 (N,)."""
    index: Tensor  # type: ignore[assignment]
    """int64 (N,), positions in the split."""
    fate: Fate | None
    """None in evaluation."""


BLOCKING = ("cpu", "mps")  # where a copy that is not waited for gains nothing, or has been seen to go wrong


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`, without waiting for the work that the device has still to do, as `.to(device)` would."""
    return values.to(device, non_blocking=device.type not in BLOCKING)
