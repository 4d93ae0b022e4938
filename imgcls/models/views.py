"""Test-time augmentation: the mean of the features of several views of an image.

It is part of the network, not of the evaluation, so that the exported model returns the logits that were evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor


def views(images: Tensor, kind: str) -> Iterator[tuple[float, Tensor]]:
    """The views of (N, 3, H, W) images, each with its weight; the weights add up to 1.

    'one' is the image itself. 'flip' adds its mirror image. 'flip_shift' gives half of the weight to both, shifted by
    one pixel diagonally, up and left or down and right (Jordan 2024): six views.
    """
    if kind == "one":
        yield 1.0, images
        return
    unflipped = [(1.0, images)]
    if kind == "flip_shift":
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        unflipped = [(0.5, images), (0.25, padded[:, :, :height, :width]), (0.25, padded[:, :, 2:, 2:])]
    for weight, view in unflipped:
        yield weight / 2, view
        yield weight / 2, view.flip(-1)
