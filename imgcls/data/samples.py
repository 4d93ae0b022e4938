"""Some training pictures as evaluation would see them, for what is computed before the training."""

from __future__ import annotations

import torch
from torch import Tensor

from imgcls.data.crops import resize
from imgcls.data.module import ImageDataModule
from imgcls.data.randomness import Draws


def plain_pictures(datamodule: ImageDataModule, count: int) -> Tensor:
    """Up to `count` training pictures, without augmentation, float32 (N, 3, S, S), normalised, on the CPU.

    Chosen by the data module's seed, so that they are the same in every process.
    """
    store = datamodule.store_of("train")
    order = Draws.of(datamodule.seed, 0, torch.arange(len(store))).stream("sample").uniform(1)[:, 0].argsort()
    pixels = resize(store.gather(order[:count].sort().values), datamodule.image_size)
    return datamodule.normalise(pixels)
