"""Runs a frozen backbone once: the features of every image are stored, and the head trains on them.

Used with `model.freeze=backbone`. The network stays complete: checkpoints, the portable model and the test are the same
as in any other run.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
from imgcls.errors import UserError
from imgcls.models.network import Network
from imgcls.system.bars import with_bar

log = logging.getLogger(__name__)

FORMAT = 2
BATCH = 64
CPU_PIXELS = 400_000
"""Of the images that go through a network at once on a CPU: the outputs of its layers for more leave the cache."""


def compute_features(
    datamodule: ImageDataModule,
    network: Network,
    *,
    views: int = 0,
    augmentation: Any = None,
    device: torch.device,
    splits: Sequence[str] = SPLITS,
) -> dict[str, FeatureStore]:
    """The features of the images of each split, computed by `network.backbone` or read from the cache.

    Validation and test images are seen as in evaluation, with the mean over the views of `network`; training images
    are, too, or have `views` augmented ones, which the epochs use in turn. With views=where_unsure, which depend on
    the head, they are features of one view.

    Args:
        datamodule: after its `setup`.
        network: with its final weights, on the CPU, where it is put back.
        views: number of augmented views of each training image; 0: the image as it is.
        augmentation: plain values that define the augmentation; part of the key of the features.
        device: where the backbone runs.
        splits: splits to compute, if the data set has them.
    """
    if (whole := datamodule.opened.whole) is not None:  # computed once for all folds
        plain = compute_features(whole.images, network, device=device, splits=("train",))["train"]
        sources = dict.fromkeys(SPLITS, plain)
        if views:
            sources |= compute_features(
                whole.images, network, views=views, augmentation=augmentation, device=device, splits=("train",)
            )
        return {name: sources[name].part(places) for name, places in whole.places.items() if name in splits}
    backbone = backbone_key(network)
    features: dict[str, FeatureStore] = {}
    for split in (name for name in datamodule.source.splits() if name in splits):
        epochs: list[int | None] = list(range(views)) if split == "train" and views else [None]
        augmented = epochs[0] is not None
        one = augmented or network.architecture.views in ("one", "where_unsure")
        seen = backbone if one else f"{backbone} {network.architecture.views}"
        key = outputs_key(datamodule, split, seen, augmentation if augmented else None)
        folder = datamodule.cache / "features" / key
        count = len(datamodule.source.splits()[split])
        shape = (len(epochs), count, network.num_features)
        store = open_features(folder, shape)
        if store is None:
            suffix = f" in {len(epochs)} views" if augmented else ""
            log.info("%s: computing the features of %s images%s once.", split, f"{count:,}", suffix)
            output = network.features if one else network.mean_features
            parts = partial(run_once, datamodule, network, split, epochs, device, output, "Features of")
            store = build_features(folder, shape, parts)
        else:
            log.info("%s: features of %s images found in %s.", split, f"{count:,}", folder)
        features[split] = store
    return features


def backbone_key(network: Network) -> str:
    """A hash of all weights and buffers of the backbone, and of its architecture."""
    content = hashlib.blake2b(digest_size=16)
    content.update(json.dumps([FORMAT, torch.__version__, network.architecture.name]).encode())
    for name, value in network.backbone.state_dict().items():
        content.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def outputs_key(datamodule: ImageDataModule, split: str, network: str, augmentation: Any = None) -> str:
    """A hash of everything that the outputs of a network for a split depend on.

    Args:
        datamodule: how the network sees the images.
        split: of the data set.
        network: the key of the network.
        augmentation: plain values that define the augmentation; None: the images as in evaluation.
    """
    training = augmentation is not None
    recipe: Recipe = datamodule.recipe_of(split, evaluation=not training)
    pictures = store_key(datamodule.source.splits()[split], recipe, datamodule.cache)
    preprocessing = datamodule.preprocessing.as_dict()
    parts = [pictures, network, preprocessing, [datamodule.order_seed, augmentation] if training else None]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def run_once(
    datamodule: ImageDataModule,
    network: Network,
    split: str,
    epochs: Sequence[int | None],
    device: torch.device,
    output: Callable[[Tensor], Tensor],
    title: str,
) -> Iterator[np.ndarray]:
    """What `output`, which uses `network`, makes of the images of all views in order: float32 (n, F), batch by batch.

    Args:
        datamodule: after its `setup`.
        network: moved to `device` and put into evaluation mode meanwhile.
        split: of the data set.
        epochs: those whose augmented views are seen; None: the images as in evaluation.
        device: where the network runs.
        output: from images, (n, 3, H, W).
        title: of the bar.
    """
    with running(network, device, output) as compute:
        for epoch in epochs:
            loader: Any = datamodule.in_order(split, min(BATCH, datamodule.micro_batch_size or BATCH), epoch)
            loader.finish = None
            seen = 0
            named = f"{title} {split}" + (f", view {epoch + 1} of {len(epochs)}" if epoch is not None else "")
            for raw in with_bar(loader, len(loader), named):
                batch = datamodule.on_after_batch_transfer(move_data_to_device(raw, device), 0)
                values = compute(batch.images)
                seen += len(values)
                yield values.numpy()
            if left_out := len(loader.plan.positions) - seen:
                raise UserError(
                    f"{left_out} {split} images cannot be read, as the log says, and the features of all are needed. "
                    "Write the shards again with imgcls.prepare, which leaves them out, or set model.freeze=none."
                )


@contextmanager
def running(
    network: Network, device: torch.device, output: Callable[[Tensor], Tensor]
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Computes `output`, which uses `network`, of images, (n, 3, H, W) on `device`: float32 on the CPU.

    Meanwhile the network is on `device`, frozen and in evaluation mode.
    """
    was_training, was_frozen = network.training, network.frozen
    # computes up to 1.6 times as fast with the channels innermost, a transformer a little slower
    innermost = device.type != "mps" and network.has_batch_norms
    layout = torch.channels_last if innermost else torch.contiguous_format

    @torch.inference_mode()
    def compute(images: Tensor) -> Tensor:
        some = max(8, CPU_PIXELS // images[0, 0].numel()) if device.type == "cpu" else BATCH
        parts = images.contiguous(memory_format=layout).split(some)
        return torch.cat([output(part).float() for part in parts]).cpu()

    network.to(device).eval()
    network.freeze(True)
    try:
        yield compute
    finally:
        network.freeze(was_frozen)
        network.to("cpu").train(was_training)
