"""Some training pictures as evaluation would see them, for what is computed before the training."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from imgcls.data.crops import resize
from imgcls.data.module import ImageDataModule
from imgcls.data.randomness import Draws
from imgcls.pictures import BadPicture

if TYPE_CHECKING:
    from imgcls.data.module import ImageDataModule


def plain_pictures(datamodule: ImageDataModule, count: int) -> Tensor:
    """Up to `count` training pictures, without augmentation, float32 (N, 3, S, S), normalised, on the CPU.

    Chosen by the data module's seed, so that they are the same in every process.
    """
    store = datamodule.store_of("train")
    order = Draws.of(datamodule.seed, 0, torch.arange(len(store))).stream("sample").uniform(1)[:, 0].argsort()
    pixels = resize(store.gather(order[:count].sort().values), datamodule.image_size)
    return datamodule.normalise(pixels)


CHECKED = 32  # pictures on which an exported model is compared with the trained one


def some_pixels(datamodule: ImageDataModule, most: int = CHECKED) -> np.ndarray | None:
    """uint8 (N, S, S, 3): at most `most` validation pictures from all over the split, as evaluation sees them.

    Of the training pictures where the data set has no validation split.
    """
    source = datamodule.source
    split = source.val if source.val is not None and len(source.val) else source.train
    positions = np.unique(np.linspace(0, len(split) - 1, min(most, len(split))).astype(np.int64))
    pixels = []
    for position in positions.tolist():
        with contextlib.suppress(BadPicture):  # those that training leaves out, and files that are gone by now
            pixels.append(datamodule.preprocessing.pixels(split.open(position)))
    return np.stack(pixels) if pixels else None
