"""Augmentations that fail, in a module so that other processes can import them."""

from __future__ import annotations

import torch
from torch import Tensor

from imgcls.data.randomness import Draws
from imgcls.errors import UserError


class Hungry:
    """Returns images unchanged, but fails like a full device with more than `most` at a time."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return images


class Refusing:
    """Refuses all images, like a custom check of the user."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        raise UserError("These images are refused")
