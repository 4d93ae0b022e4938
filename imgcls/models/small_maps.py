"""Convolutions of small images on a processor: kernels that lie on the whole image at each position are linear layers.

The last stages of a ResNet map images of 32 pixels to 2x2 and to 1x1 positions. Of the nine taps of their kernels four
and one then lie on a pixel and the others on padding, which libraries for convolutions compute as well: more than half
of the time of a ResNet18's training step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallMapConv2d(nn.Conv2d):
    """`nn.Conv2d` of one group, which on a CPU multiplies with the parts of its kernel that lie on the image.

    It does so where at each position the kernel covers the whole image, and gives the same up to rounding. Several
    positions need weights with the channels innermost: otherwise copying the parts takes longer than the padding.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, H', W')."""
        if images.ndim != 4 or images.device.type != "cpu":
            return super().forward(images)
        (height, tops), (width, lefts) = (
            _first_taps(images.shape[2 + side], self.kernel_size[side], self.stride[side], int(self.padding[side]))
            for side in (0, 1)
        )
        positions = len(tops) * len(lefts)
        innermost = self.weight.is_contiguous(memory_format=torch.channels_last)
        if not positions or (positions > 1 and not innermost):
            return super().forward(images)
        order = (0, 2, 3, 1) if innermost else (0, 1, 2, 3)
        # narrowed after the permutation, or else the gradients would be laid out in the other order
        kernel, (rows, columns) = self.weight.permute(order), (order.index(2), order.index(3))
        parts = [kernel.narrow(rows, top, height).narrow(columns, left, width) for top in tops for left in lefts]
        weight, bias = parts[0].flatten(1), self.bias
        if positions > 1:
            weight = torch.cat([part.flatten(1) for part in parts])
            bias = None if bias is None else bias.repeat(positions)
        values = F.linear(images[:, :, :height, :width].permute(order).flatten(1), weight, bias)
        return values.unflatten(1, (len(tops), len(lefts), self.out_channels)).permute(0, 3, 1, 2)


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


def _first_taps(side: int, kernel: int, stride: int, padding: int) -> tuple[int, list[int]]:
    """How many pixels of a `side` the kernel covers, and which of its taps lies on the first of them at each position.

    There are no positions where the kernel does not cover the same pixels at each.
    """
    positions = max(0, (side + 2 * padding - kernel) // stride + 1)
    pixels = min(side, kernel - padding) if positions == 1 else side
    taps = [padding - stride * position for position in range(positions)]
    covered = positions > 0 and pixels > 0 and taps[-1] >= 0 and padding + pixels <= kernel
    return pixels, taps if covered else []
