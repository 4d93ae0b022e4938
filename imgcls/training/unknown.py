"""Fits the score by which the exported model knows unknown images, on the features of its own network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from imgcls.data.module import ImageDataModule
from imgcls.data.stores.features import FeatureStore
from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture
from imgcls.models.memory import Memory
from imgcls.models.network import Network
from imgcls.portable.novelty import Novelty, fit_novelty, minimum_images
from imgcls.system.positions import spread_positions
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
    test: bool = True,
    features: Mapping[str, FeatureStore] | None = None,
    device: torch.device | None = None,
) -> Novelty | None:
    """The score of unknown images for `network`, or None where there is none.

    Args:
        share: of known images, which are to be taken for such; 'auto': 0.95 with a frozen backbone, whose features are
            stored, else none; False: none.
        datamodule: the images, set up.
        network: with its final weights.
        frozen: whether its backbone is the one that the training began with.
        test: also measure the share of the test images, if there are any.
        features: those of a frozen backbone that are there already, by split.
        device: where others are computed; None: the CPU.

    Raises:
        UserError: a share for images with several labels.
    """
    source = datamodule.source
    if datamodule.multilabel and share not in ("auto", False):
        raise UserError(f"known={share}: unknown images are told for images with one label each, not task=multilabel.")
    if share is False or (share == "auto" and not frozen) or datamodule.multilabel or source.val is None:
        return None
    if isinstance(network.head, Memory):  # to which classes are added later, whose images would be unknown
        return None
    target = DEFAULT if share == "auto" else float(share)
    unseen = len(source.val) + (len(source.train) if frozen else 0)
    if unseen < minimum_images(target):
        if share != "auto":
            log.warning(
                "export.known=%g needs %d images that the network has not seen, and there are %d: the model knows no "
                "unknown images.",
                target,
                minimum_images(target),
                unseen,
            )
        return None
    device = device or torch.device("cpu")
    splits = ("train", "val", "test") if test and source.test is not None else ("train", "val")
    if frozen:
        stored = dict(features or {})
        missing = tuple(split for split in splits if split not in stored)
        stored |= compute_features(datamodule, network, device=device, splits=missing) if missing else {}
        parts = {split: _pick(datamodule, split, stored[split]) for split in splits}
    else:
        parts = {split: _compute(datamodule, network, split, device) for split in splits}
    novelty = fit_novelty(*parts["train"], parts["val"][0], target, frozen=frozen)
    if novelty is None:
        log.warning("The features of the images give no bound: the model knows no unknown images.")
        return None
    return novelty.measured(parts["test"][0]) if "test" in parts else novelty


def _positions(datamodule: ImageDataModule, split: str) -> np.ndarray:
    """Of some images of `split`, spread over it, int64 (n,)."""
    count = len(datamodule.source.splits()[split])
    return spread_positions(count, min(max(LEAST, PER_CLASS * datamodule.num_classes), MOST))


def _pick(datamodule: ImageDataModule, split: str, store: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
    """Stored features, float32 (n, F), and labels, int64 (n,)."""
    positions = _positions(datamodule, split)
    return store.gather(torch.from_numpy(positions)).numpy(), datamodule.source.splits()[split].labels[positions]


def _compute(
    datamodule: ImageDataModule, network: Network, split: str, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Features, float32 (n, F), and labels, int64 (n,)."""
    if split != "train":
        datamodule.store_of(split, evaluation=True)  # which leaves out what cannot be read
    kept, parts = [], []
    was_training = network.training
    network.to(device).eval()
    try:
        for chosen, pixels in _pixels(datamodule, split, _positions(datamodule, split)):
            batch = datamodule.normalise(pixels).to(device)
            with torch.inference_mode():
                parts.append(network.mean_features(batch).float().cpu().numpy())
            kept.append(chosen)
    finally:
        network.to("cpu").train(was_training)
    return np.concatenate(parts), datamodule.source.splits()[split].labels[np.concatenate(kept)]


def _pixels(datamodule: ImageDataModule, split: str, positions: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Positions, int64 (n,), with pixels as evaluation sees them, uint8 (n, 3, S, S), in batches.

    From the store of decoded pixels, which all splits but that of the training images have.
    """
    batches = np.array_split(positions, -(-len(positions) // BATCH))
    if split != "train" or (split, datamodule.recipe_of(split, evaluation=True)) in datamodule.opened.stores:
        store = datamodule.store_of(split, evaluation=True)
        yield from ((batch, store.gather(torch.from_numpy(batch))) for batch in batches)
        return
    images, preprocessing = datamodule.source.splits()[split], datamodule.preprocessing

    def read(position: int) -> np.ndarray | None:
        try:
            return preprocessing.pixels(preprocessing.open(images.pictures[position]))
        except BadPicture:
            return None

    with ThreadPoolExecutor(max(1, datamodule.num_workers)) as pool:
        for batch in batches:
            pixels = list(pool.map(read, batch.tolist()))
            good = [place for place, image in enumerate(pixels) if image is not None]
            if good:
                values = np.stack([image for image in pixels if image is not None])
                yield batch[good], torch.from_numpy(values).permute(0, 3, 1, 2)
