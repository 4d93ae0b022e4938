"""A frozen backbone is run once: its features of every picture are kept, and the head trains on them.

Used where `model.freeze=backbone`. The network stays whole: checkpoints, the portable model and the test are those of
any other run.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from imgcls.data.module import ImageDataModule
from imgcls.data.sources import SPLITS
from imgcls.data.stores.disk import store_key
from imgcls.data.stores.features import FeatureStore, build_features, open_features
from imgcls.data.stores.store import Recipe
from imgcls.models.network import Network
from imgcls.system.bars import with_bar

log = logging.getLogger(__name__)

FORMAT = 1
BATCH = 64


def compute_features(
    datamodule: ImageDataModule,
    network: Network,
    *,
    views: int = 0,
    augmentation: Any = None,
    device: torch.device,
    splits: Sequence[str] = SPLITS,
) -> dict[str, FeatureStore]:
    """Each split's features of its pictures, computed by `network.backbone` or found again.

    Validation and test pictures have one view, as evaluation sees them; training pictures have it too, or `views`
    augmented ones, of which an epoch takes the next.

    Args:
        datamodule: set up.
        network: with the weights that it keeps; on the CPU, where it is put back.
        views: of each training picture; 0: the picture as it is.
        augmentation: plain values that say what the augmentation does; part of the name of the features.
        device: where the backbone runs.
        splits: those that are asked for, as far as the data set has them.
    """
    kind = backbone_key(network)
    found: dict[str, FeatureStore] = {}
    for split in (name for name in datamodule.source.splits() if name in splits):
        epochs: list[int | None] = list(range(views)) if split == "train" and views else [None]
        name = _name(datamodule, split, kind, augmentation if epochs[0] is not None else None)
        folder = datamodule.cache / "features" / name
        count = len(datamodule.source.splits()[split])
        shape = (len(epochs), count, network.num_features)
        known = open_features(folder, shape)
        if known is None:
            log.info("%s: the backbone sees %d pictures%s once.", split, count, f" in {views} views" if views else "")
            known = build_features(folder, shape, _compute(datamodule, network, split, epochs, device))
        else:
            log.info("%s: features of %d pictures found in %s.", split, count, folder)
        found[split] = known
    return found


def backbone_key(network: Network) -> str:
    """A name made from all weights and buffers of the backbone, and from how it is built."""
    content = hashlib.blake2b(digest_size=16)
    content.update(json.dumps([FORMAT, torch.__version__, network.architecture.name]).encode())
    for name, value in network.backbone.state_dict().items():
        content.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _name(datamodule: ImageDataModule, split: str, backbone: str, augmentation: Any) -> str:
    seen = datamodule.preprocessing
    training = augmentation is not None
    recipe: Recipe = datamodule.recipe_of(split, evaluation=not training)
    pictures = store_key(datamodule.source.splits()[split], recipe, datamodule.cache)
    words = [pictures, backbone, seen.as_dict(), [datamodule.seed, augmentation] if training else None]
    return hashlib.blake2b(json.dumps(words, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _compute(
    datamodule: ImageDataModule, network: Network, split: str, epochs: list[int | None], device: torch.device
) -> Iterator[np.ndarray]:
    """The features of all views in order, part after part."""
    was_training, was_frozen = network.training, network.frozen
    network.to(device).eval()
    network.freeze(True)
    try:
        for epoch in epochs:
            loader: Any = datamodule.in_order(split, min(BATCH, datamodule.micro_batch_size or BATCH), epoch)
            loader.finish = None
            title = f"Features of {split}" + (f", view {epoch + 1} of {len(epochs)}" if epoch is not None else "")
            for raw in with_bar(loader, len(loader), title):
                batch = datamodule.on_after_batch_transfer(move_data_to_device(raw, device), 0)
                yield _features(network, batch.images).cpu().numpy()
    finally:
        network.freeze(was_frozen)
        network.to("cpu").train(was_training)


def _features(network: Network, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network.features(images).float()
