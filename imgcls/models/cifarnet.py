"""Small, fast convolutional networks for images of 32 px, after airbench (Jordan 2024) and ResNet9 (Page 2018).

Registered with timm, so that `model.name=cifarnet` is built, exported and served as any other backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from imgcls.models.whitening import whitening_filters

KERNEL_PX = 2  # of the whitening convolution


class CifarNet(nn.Module):
    """A fixed whitening convolution, then three groups of convolutions that each halve the resolution.

    The filters of the first convolution are computed from patches of the training images (`initialise_from`) and fixed;
    the others start as close to the identity as they can (dirac), so that signals pass from the first step. Batch norms
    have a shift but no scale, which the next convolution can express.

    Args:
        widths: channels of the three groups.
        depth: convolutions per group; 3 adds a residual connection around the last two.
        norm_momentum: share of a new batch in the running statistics; large for trainings of few steps.
        scale: factor of the features; keeps the first logits small, and lets the head share the others' learning rate.
        whiten_bias_epochs: epochs in which the bias of the whitening convolution is trained; after them no gradient is
            needed for the largest feature map.
        num_classes: classes of timm's own head; 0 returns features.
        in_chans: channels of the images.
        drop_rate: dropout rate of the features.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 256, 256),
        depth: int = 2,
        norm_momentum: float = 0.4,
        scale: float = 1 / 9,
        whiten_bias_epochs: int = 3,
        num_classes: int = 0,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if len(widths) != 3 or depth not in (2, 3):
            raise ValueError(f"CifarNet takes three widths and a depth of 2 or 3, not {list(widths)} and {depth}.")
        self.scale, self.whiten_bias_epochs, self.drop_rate = scale, whiten_bias_epochs, drop_rate
        whitened = 2 * in_chans * KERNEL_PX**2
        self.whiten = nn.Conv2d(in_chans, whitened, KERNEL_PX)
        self.whiten.weight.requires_grad_(False)
        inputs = [whitened, *widths[:-1]]
        self.groups = nn.Sequential(
            *(ConvGroup(channels, width, depth, norm_momentum) for channels, width in zip(inputs, widths, strict=True))
        )
        self.num_features = self.head_hidden_size = widths[-1]
        self.head = nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity()
        self.train_whiten_bias = True

    def initialise_from(self, images: Tensor) -> None:
        """Compute the whitening filters from normalised training images, float (N, 3, H, W)."""
        self.whiten.weight.data.copy_(whitening_filters(images, KERNEL_PX))

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0; it alone decides whether the first bias is trained."""
        self.train_whiten_bias = epoch < self.whiten_bias_epochs

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to the last feature map, (N, F, h, w); 3x3 for images of 32 px."""
        return self.groups(F.gelu(self._whiten(images)))

    def _whiten(self, images: Tensor) -> Tensor:
        """In float32: whitening amplifies small differences of neighbouring pixels, which bfloat16 would round away."""
        weight, bias, device = self.whiten.weight, self.whiten.bias, images.device.type
        assert bias is not None
        bias = bias if self.train_whiten_bias or not self.training else bias.detach()
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return F.conv2d(images, weight, bias)
        with torch.autocast(device, enabled=False):
            return F.conv2d(images.float(), weight, bias).to(torch.get_autocast_dtype(device))

    def forward_head(self, maps: Tensor) -> Tensor:
        """The last feature map to (N, F) features, or (N, C) logits."""
        features = F.max_pool2d(maps, (maps.shape[2], maps.shape[3])).flatten(1) * self.scale
        return self.head(F.dropout(features, self.drop_rate, self.training))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images to (N, F) features, or (N, C) logits."""
        return self.forward_head(self.forward_features(images))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """The patterns by which timm groups parameters into layers."""
        return {"stem": r"^whiten", "blocks": r"^groups\.(\d+)"}


class ConvGroup(nn.Module):
    """Convolution, 2x2 max-pooling, and one or two more convolutions; a norm and a GELU after each."""

    def __init__(self, inputs: int, width: int, depth: int, norm_momentum: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_convolution(inputs if layer == 0 else width, width) for layer in range(depth))
        self.norms = nn.ModuleList(_norm(width, norm_momentum) for _ in range(depth))
        self.residual = depth > 2

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H / 2, W / 2)."""
        maps = shortcut = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](maps), 2)))
        for layer in range(1, len(self.convs)):
            maps = self.norms[layer](self.convs[layer](maps))
            if self.residual and layer == len(self.convs) - 1:
                maps = maps + shortcut
            maps = F.gelu(maps)
        return maps


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:inputs])
    return layer


def _norm(width: int, momentum: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=momentum)
    norm.weight.requires_grad_(False)
    return norm


_SMALL_IMAGES = {"input_size": (3, 32, 32), "num_classes": 10, "first_conv": "whiten", "classifier": "head"}
default_cfgs = generate_default_cfgs({name: dict(_SMALL_IMAGES) for name in ("cifarnet", "cifarnet_wide")})


@register_model
def cifarnet(pretrained: bool = False, **options: Any) -> CifarNet:
    """Six convolutions, 2 million parameters: the network of airbench94."""
    return build_model_with_cfg(CifarNet, "cifarnet", pretrained, **options)


@register_model
def cifarnet_wide(pretrained: bool = False, **options: Any) -> CifarNet:
    """Nine convolutions with residual connections, 13 million parameters: the network of airbench96."""
    wide = {"widths": (128, 512, 512), "depth": 3, "norm_momentum": 0.1}
    return build_model_with_cfg(CifarNet, "cifarnet_wide", pretrained, **{**wide, **options})
