"""An augmentation for which a device has no memory: other processes can be given it by its name."""

from __future__ import annotations

import torch
from torch import Tensor

from imgcls.data.randomness import Draws


class Hungry:
    """Leaves pictures as they are, but fails as a full device does for more than `most` at a time."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return images
