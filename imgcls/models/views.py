"""Test-time augmentation: the mean of the features of several views of an image.

It is part of the network, not of the evaluation, so that the exported model returns the logits that were evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 0.5
"""An image is unsure if its two highest probabilities, before any temperature, differ by less than this."""
RAMP = 0.1
"""Of an image whose margin is this much smaller, or more, the other views count in full; in between, in proportion."""

Features = Callable[[Tensor], Tensor]


def views(images: Tensor, kind: str) -> Iterator[tuple[float, Tensor]]:
    """The views of (N, 3, H, W) images, each with its weight; the weights add up to 1.

    'one' is the image itself. 'flip' adds its mirror image. 'flip_shift' gives half of the weight to both, shifted by
    one pixel diagonally, up and left or down and right (Jordan 2024): six views. 'where_unsure' has the same six.
    """
    if kind == "one":
        yield 1.0, images
        return
    unflipped = [(1.0, images)]
    if kind != "flip":
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        unflipped = [(0.5, images), (0.25, padded[:, :, :height, :width]), (0.25, padded[:, :, 2:, 2:])]
    for weight, view in unflipped:
        yield weight / 2, view
        yield weight / 2, view.flip(-1)


def mean_features(images: Tensor, kind: str, features: Features, head: Features) -> Tensor:
    """(N, F) features of (N, 3, H, W) images, the mean over their views; only 'where_unsure' uses the head."""
    if kind == "one":
        return features(images)
    if kind == "where_unsure":
        first = features(images).float()
        return _with_views_where_unsure(images, first, unsureness(head(first)), features)
    return torch.stack([weight * features(view).float() for weight, view in views(images, kind)]).sum(dim=0)


@torch.compiler.disable
def _with_views_where_unsure(images: Tensor, first: Tensor, unsure: Tensor, features: Features) -> Tensor:
    """Not compiled: it has another shape for each number of unsure images, which the host waits for."""
    rows = unsure.nonzero()[:, 0]
    if not len(rows):
        return first

    def in_batches(several: Tensor) -> Tensor:
        return torch.cat([features(batch) for batch in several.split(len(images))])  # a size that fits into memory

    return add_views(first, unsure, rows, images[rows], in_batches)


def unsureness(logits: Tensor) -> Tensor:
    """The share, (N,), with which the other views of an image count, by its (N, C) logits after one view.

    It is 0 from a margin of MARGIN between the two highest probabilities on, and 1 below MARGIN - RAMP. It depends on
    the image alone, and continuously, so that rounding, the engine and the batch do not decide an answer.
    """
    best = logits.float().softmax(dim=1).topk(2, dim=1).values
    return ((MARGIN - best[:, 0] + best[:, 1]) / RAMP).clamp(0, 1)


def add_views(first: Tensor, unsure: Tensor, rows: Tensor, images: Tensor, features: Features) -> Tensor:
    """The (N, F) features `first` of one view, those of the unsure images mixed with the mean over all of their views.

    Args:
        first: features of all images.
        unsure: the share of the mean, (N,), from `unsureness`.
        rows: of the unsure images, int64 (n,).
        images: the unsure images, (n, 3, H, W).
        features: of the five other views of all of them, (5 * n, 3, H, W).
    """
    (share, _), *others = views(images, "where_unsure")
    found = features(torch.cat([view for _, view in others])).float().unflatten(0, (len(others), -1))
    mean = share * first[rows]
    for (weight, _), values in zip(others, found, strict=True):
        mean = mean + weight * values
    return first.index_copy(0, rows, torch.lerp(first[rows], mean, unsure[rows, None]))
