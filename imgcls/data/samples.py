"""Samples of a data set without augmentation, for computations before and after the training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgcls.data.crops import resize
from imgcls.data.module import ImageDataModule
from imgcls.data.randomness import Draws
from imgcls.images.channels import Planes
from imgcls.images.decoding import BadPicture
from imgcls.system.positions import spread_positions


def sample_training_images(datamodule: ImageDataModule, count: int) -> Tensor:
    """Up to `count` training images without augmentation, float32 (N, 3, S, S), normalised, on the CPU.

    Chosen by the data module's seed, so that they are the same in every process.
    """
    store = datamodule.store_of("train")
    order = Draws.of(datamodule.seed, 0, torch.arange(len(store))).stream("sample").uniform(1)[:, 0].argsort()
    pixels = resize(store.gather(order[:count].sort().values), datamodule.image_size)
    return datamodule.normalise(pixels)


def sample_validation_pictures(datamodule: ImageDataModule, count: int) -> list[Image.Image]:
    """Up to `count` validation images of different classes; empty without a validation split, or of other channels."""
    split, depth = datamodule.source.val, datamodule.depth
    if split is None or depth.bits != 8 or depth.channels not in (1, 3):
        return []
    _, first = np.unique(split.strata, return_index=True)
    others = np.setdiff1d(np.arange(len(split)), first)
    order = np.concatenate([first[spread_positions(len(first), count)], others])
    pictures: list[Image.Image] = []
    for position in order.tolist():
        if len(pictures) == count:
            break
        with contextlib.suppress(BadPicture):
            pictures.append(split.preview(position, depth))
    return pictures


def sample_evaluation_pixels(datamodule: ImageDataModule, count: int = 32) -> np.ndarray | None:
    """Pixels of up to `count` validation images, spread over the split, as evaluation sees them: uint8 (N, S, S, 3).

    Of training images where the data set has no validation split; None if no image can be read.
    """
    source = datamodule.source
    split = source.val if source.val is not None and len(source.val) else source.train
    pixels = []
    for position in spread_positions(len(split), count).tolist():
        with contextlib.suppress(BadPicture):  # images that training skips, and files that have been removed since
            pixels.append(datamodule.preprocessing.pixels(datamodule.preprocessing.open(split.pictures[position])))
    return np.stack(pixels) if pixels else None


def labelled_validation_pictures(datamodule: ImageDataModule, count: int) -> Iterator[tuple[Image.Image | Planes, int]]:
    """Up to `count` validation images, spread over the split, each with its class; damaged ones are skipped."""
    split = datamodule.source.val
    if split is None:
        return
    for position in spread_positions(len(split), count).tolist():
        with contextlib.suppress(BadPicture):
            yield datamodule.preprocessing.open(split.pictures[position]), int(split.labels[position])


def evaluation_batches(
    datamodule: ImageDataModule, split: str, count: int, batch_size: int = 16
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Up to `count` images of `split`, spread over it, as evaluation sees them, in batches with their labels.

    Each batch is float32 (n, 3, S, S), normalised, and int64 (n,), or (n, C) with several labels.
    """
    store = datamodule.store_of(split, evaluation=True)
    labels = datamodule.source.splits()[split].labels
    positions = spread_positions(len(store), count)
    for start in range(0, len(positions), batch_size):
        part = positions[start : start + batch_size]
        images = datamodule.normalise(store.gather(torch.from_numpy(part)))
        yield images.contiguous().numpy(), labels[part]
