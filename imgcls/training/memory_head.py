"""Fills a head that keeps features with those of the training images."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from imgcls.data.module import ImageDataModule
from imgcls.data.stores.features import FeatureStore
from imgcls.errors import UserError
from imgcls.models.memory import START_SCALE, Memory, Neighbours, check_rows
from imgcls.portable.calibration import fit_temperature

log = logging.getLogger(__name__)


def check_memory(head: Memory, images: ImageDataModule, *, frozen: bool) -> None:
    """Raise UserError if the head cannot keep these images: too many of them, or some that count more than others.

    `frozen`: whether the features are those of a frozen backbone, which runs once.
    """
    if not frozen:
        raise UserError("head=prototype and head=knn need trained weights and model.freeze=backbone.")
    if images.source.train.weights is not None:
        raise UserError("head=prototype and head=knn give all images the same weight. Use head=linear, or no weights.")
    if isinstance(head, Neighbours):
        check_rows(len(images.source.train), head.rows.shape[1])


@torch.no_grad()
def fill_memory(
    head: Memory, images: ImageDataModule, features: Mapping[str, FeatureStore], device: torch.device | None = None
) -> None:
    """Keep the training features in `head`, and fit its scale by classifying each image with the others.

    Args:
        head: changed in place.
        images: the images that the features belong to.
        features: those of `train`.
        device: where it is computed; the CPU by default.
    """
    values = torch.from_numpy(np.array(features["train"].features[0])).to(device)
    labels = torch.from_numpy(images.source.train.labels).to(device)
    head.store(values, labels)
    scores, true = (part.cpu() for part in head.to(values.device).left_out(values, labels))
    head.to("cpu")
    if not len(true):
        log.info("The head keeps %s features, one of each class.", f"{len(labels):,}")
        return
    head.scale.fill_(START_SCALE / fit_temperature((START_SCALE * scores).numpy(), true.numpy()))
    accuracy = float((scores.argmax(dim=1) == true).float().mean())
    log.info(
        "The head keeps the features of %s images; of %s of them, each by the others, %.2f %% are classified "
        "correctly. Its scale is %.3g.",
        *(f"{len(labels):,}", f"{len(true):,}", 100 * accuracy, head.scale.item()),
    )
