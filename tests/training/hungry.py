"""Augmentations that fail: other processes can be given them by their names."""

from __future__ import annotations

import torch
from torch import Tensor

from imgcls.data.randomness import Draws
from imgcls.errors import UserError


class Hungry:
    """Leaves pictures as they are, but fails as a full device does for more than `most` at a time."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return images


class Refusing:
    """Refuses all pictures, as a check of the user's own would."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        raise UserError("These pictures are refused")
