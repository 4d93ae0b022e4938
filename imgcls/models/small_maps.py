"""Convolutions of small images on a processor: those with a single output position are linear layers.

The last stage of a ResNet maps images of 32 pixels to 1x1 positions. Its 3x3 kernels then lie on one pixel and eight of
padding, which libraries for convolutions compute as well: half of the time of a ResNet18's training step.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SmallMapConv2d(nn.Conv2d):
    """`nn.Conv2d` of one group, which on a CPU multiplies with the part of its kernel that lies on the image.

    It does so where its output is a single position, and gives the same up to rounding.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, H', W')."""
        if images.ndim != 4 or images.device.type != "cpu":
            return super().forward(images)
        top, left = (int(side) for side in self.padding)
        rows = _covered(images.shape[2], self.kernel_size[0], self.stride[0], top)
        columns = _covered(images.shape[3], self.kernel_size[1], self.stride[1], left)
        if not rows or not columns:
            return super().forward(images)
        kernel = self.weight[:, :, top : top + rows, left : left + columns]
        return F.linear(images[:, :, :rows, :columns].flatten(1), kernel.flatten(1), self.bias)[..., None, None]


def use_linear_layers_for_small_maps(network: nn.Module) -> None:
    """Make `SmallMapConv2d` of all convolutions in `network` that it can replace; weights and hooks stay."""
    for layer in network.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.groups == 1
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        ):
            layer.__class__ = SmallMapConv2d


def _covered(side: int, kernel: int, stride: int, padding: int) -> int:
    """How many pixels of a `side` the kernel covers at its only position; 0 where it has several or none."""
    if not 0 <= side + 2 * padding - kernel < stride:
        return 0
    return max(0, min(side, kernel - padding))
