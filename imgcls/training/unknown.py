"""Fits the score by which the exported model knows unknown images, on the features of its own network."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from imgcls.data.module import ImageDataModule
from imgcls.models.memory import Memory
from imgcls.models.network import Network
from imgcls.pictures import BadPicture
from imgcls.portable.exported import mean_features
from imgcls.portable.novelty import Novelty, fit_novelty, minimum_images
from imgcls.training.frozen_backbone import compute_features

log = logging.getLogger(__name__)

DEFAULT = 0.95
PER_CLASS = 20  # training images for the mean of a class
LEAST, MOST = 2000, 20_000  # images of a split
BATCH = 64


def fit_known(
    share: float | bool | str,
    datamodule: ImageDataModule,
    network: Network,
    *,
    frozen: bool,
    device: torch.device | None = None,
) -> Novelty | None:
    """The score of unknown images for `network`, or None where there is none.

    Args:
        share: of the validation images that are to be known; 'auto': 0.95 with a frozen backbone, whose features are
            stored, else none; False: none.
        datamodule: the images, set up.
        network: with its final weights.
        frozen: whether its backbone is the one that the training began with.
        device: where the features are computed; None: the CPU.
    """
    source = datamodule.source
    if share is False or (share == "auto" and not frozen) or datamodule.multilabel or source.val is None:
        return None
    if isinstance(network.head, Memory):  # to which classes are added later, whose images would be unknown
        return None
    wished = DEFAULT if share == "auto" else float(share)
    if len(source.val) < minimum_images(wished):
        if share != "auto":
            log.warning(
                "export.known=%g needs %d validation images, and there are %d: the model knows no unknown images.",
                wished,
                minimum_images(wished),
                len(source.val),
            )
        return None
    parts = {
        name: _features(datamodule, network, name, device or torch.device("cpu"), stored=frozen)
        for name in ("train", "val", "test")
        if name in source.splits()
    }
    novelty = fit_novelty(*parts["train"], parts["val"][0], wished)
    if novelty is None:
        log.warning("The features of the validation images give no bound: the model knows no unknown images.")
        return None
    return novelty.measured(parts["test"][0]) if "test" in parts else novelty


def _features(
    datamodule: ImageDataModule, network: Network, split: str, device: torch.device, *, stored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Features, float32 (n, F), and labels, int64 (n,), of some images of `split`, spread over it."""
    images = datamodule.source.splits()[split]
    limit = min(max(LEAST, PER_CLASS * datamodule.num_classes), MOST, len(images))
    positions = np.unique(np.linspace(0, len(images) - 1, limit).astype(np.int64))
    if stored and network.architecture.views == "one":
        store = compute_features(datamodule, network, device=device, splits=(split,))[split]
        return np.array(store.features[0][positions]), images.labels[positions]
    kept, parts = [], []
    was_training = network.training
    network.to(device).eval()
    try:
        for chosen, pixels in _read(datamodule, split, positions):
            batch = torch.from_numpy(datamodule.preprocessing.normalise(pixels)).to(device)
            with torch.inference_mode():
                parts.append(mean_features(network, batch).cpu().numpy())
            kept.append(chosen)
    finally:
        network.to("cpu").train(was_training)
    chosen = np.concatenate(kept)
    return np.concatenate(parts), images.labels[chosen]


def _read(datamodule: ImageDataModule, split: str, positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The positions of readable images, with their pixels as the exported model sees them, in batches."""
    images = datamodule.source.splits()[split]

    def read(position: int) -> np.ndarray | None:
        try:
            return datamodule.preprocessing.pixels(images.open(position))
        except BadPicture:
            return None

    with ThreadPoolExecutor(max(1, datamodule.num_workers)) as pool:
        for start in range(0, len(positions), BATCH):
            batch = positions[start : start + BATCH]
            pixels = list(pool.map(read, batch.tolist()))
            good = [place for place, image in enumerate(pixels) if image is not None]
            if good:
                yield batch[good], np.stack([image for image in pixels if image is not None])
