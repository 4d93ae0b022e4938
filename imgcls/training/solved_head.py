"""Solves the linear head of a network on the features of its backbone."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from imgcls.data.module import ImageDataModule
from imgcls.data.stores.features import FeatureStore
from imgcls.models.logistic import solve
from imgcls.models.network import Network

log = logging.getLogger(__name__)


MOST_VALUES = 2**28
"""The most features (images times width) that are solved in memory, 1 GB."""
MOST_PRODUCTS = 2**34
"""The most products (features times classes) of an evaluation, of which a solution takes some hundreds."""


def is_solvable(images: int, width: int, classes: int) -> bool:
    """Whether a head for this number of training images, features and classes can be solved in minutes, in memory."""
    return images * width <= MOST_VALUES and images * width * classes <= MOST_PRODUCTS


def solve_head(
    network: Network,
    images: ImageDataModule,
    features: Mapping[str, FeatureStore],
    *,
    class_weights: Tensor | None = None,
    by_loss: bool = False,
    device: torch.device | None = None,
) -> None:
    """Set the last linear layer of the head to the logistic regression on the training features.

    The validation images choose the strength of its penalty, or parts of the training images if there are none.

    Args:
        network: its head is `imgcls.models.heads.Linear`; changed in place.
        images: the images that the features belong to.
        features: those of `train`, and of `val` if there are validation images.
        class_weights: float32 (C,), the weights of the classes in the loss; None: that of each image is the same.
        by_loss: choose the penalty by the validation loss instead of the accuracy.
        device: where it is computed; the CPU by default.
    """
    if images.sampler == "balanced" and class_weights is None:
        counts = images.class_counts().float()
        class_weights = counts.sum() / (len(counts) * counts.clamp(min=1))

    def pair(split: str) -> tuple[Tensor, Tensor]:
        values = features[split].gather(torch.arange(len(features[split]))).to(device)
        return values, torch.from_numpy(images.source.splits()[split].labels).to(device)

    began = time.monotonic()
    values, labels = pair("train")
    own = images.source.train.weights
    found = solve(
        values,
        labels,
        images.num_classes,
        held_out=pair("val") if "val" in features else None,
        class_weights=class_weights,
        image_weights=torch.from_numpy(own).to(values) if own is not None else None,
        by_loss=by_loss,
        seed=images.seed,
    )
    layer = next(module for module in reversed(list(network.head.modules())) if isinstance(module, nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(found.weight)
        if layer.bias is not None:
            layer.bias.copy_(found.bias)
    log.info(
        "The linear head is solved on %s features in %.1f s: a penalty of %.2g, chosen on %s (accuracy %.2f%%).",
        f"{len(labels):,}",
        time.monotonic() - began,
        found.penalty,
        f"{len(features['val']):,} validation images" if "val" in features else "thirds of them",
        100 * found.accuracy,
    )
