"""Test-time augmentation: the mean score of several views of a picture.

It is part of the network, not of the measuring: the exported model gives the scores that were measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor


def views(images: Tensor, kind: str) -> Iterator[tuple[float, Tensor]]:
    """The views of (N, 3, H, W) pictures, each with its weight; the weights add up to 1.

    'one' is the picture itself. 'flip' adds its mirror image. 'flip_shift' gives half of the weight to both, moved by a
    pixel along the diagonal, up and to the left or down and to the right (Jordan 2024): six views.
    """
    if kind == "one":
        yield 1.0, images
        return
    places = [(1.0, images)]
    if kind == "flip_shift":
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        moved = [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
        places = [(0.5, images), *((0.25, image) for image in moved)]
    for weight, place in places:
        yield weight / 2, place
        yield weight / 2, place.flip(-1)
