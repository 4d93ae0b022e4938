"""Small, fast convolutional networks for pictures of 32 px, after airbench (Jordan 2024) and ResNet9 (Page 2018).

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

KERNEL = 2  # px, of the whitening convolution


class CifarNet(nn.Module):
    """A fixed whitening convolution, then three groups of convolutions that each halve the picture.

    The first convolution gets its filters from patches of the training pictures (`initialise_from`) and keeps them; the
    others start as identities as far as they can (dirac), so that signals pass from the first step on. Batch norms have
    a shift but no scale, which the next convolution makes up for.

    Args:
        widths: channels of the three groups.
        depth: convolutions of a group; 3 adds a residual connection around the last two.
        norm_momentum: share of a new batch in the running statistics; large for a training of few steps.
        scale: factor of the features, which makes the head's scores small at first and its rate the others' too.
        whiten_bias_epochs: the whitening convolution's bias trains for so many epochs; after that no gradient has to be
            computed for the largest feature map.
        num_classes: 0 gives features.
        in_chans: 3.
        drop_rate: dropout of the features.
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
            raise ValueError(f"CifarNet has three widths and a depth of 2 or 3, not {list(widths)} and {depth}.")
        self.scale, self.whiten_bias_epochs, self.drop_rate = scale, whiten_bias_epochs, drop_rate
        whitened = 2 * in_chans * KERNEL**2
        self.whiten = nn.Conv2d(in_chans, whitened, KERNEL)
        self.whiten.weight.requires_grad_(False)
        inputs = [whitened, *widths[:-1]]
        self.groups = nn.Sequential(
            *(ConvGroup(given, width, depth, norm_momentum) for given, width in zip(inputs, widths, strict=True))
        )
        self.num_features = self.head_hidden_size = widths[-1]
        self.head = nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity()
        self.train_whiten_bias = True

    def initialise_from(self, images: Tensor) -> None:
        """Take the whitening filters from normalised training pictures, float (N, 3, H, W)."""
        self.whiten.weight.data.copy_(whitening_filters(images, KERNEL))

    def begin_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0 on: whether the first bias trains is a function of it alone."""
        self.train_whiten_bias = epoch < self.whiten_bias_epochs

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to the last feature map, (N, F, h, w); 3x3 for pictures of 32 px."""
        maps: Tensor = self.groups(F.gelu(self._whitened(images)))
        return maps

    def _whitened(self, images: Tensor) -> Tensor:
        """Whitening multiplies small differences of neighbouring pixels, which bfloat16's 8 bits would round away."""
        weight, bias, kind = self.whiten.weight, self.whiten.bias, images.device.type
        assert bias is not None
        bias = bias if self.train_whiten_bias or not self.training else bias.detach()
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return F.conv2d(images, weight, bias)
        with torch.autocast(kind, enabled=False):
            return F.conv2d(images.float(), weight, bias).to(torch.get_autocast_dtype(kind))

    def forward_head(self, maps: Tensor) -> Tensor:
        """The last feature map to (N, F) features, or (N, C) scores."""
        features = F.max_pool2d(maps, (maps.shape[2], maps.shape[3])).flatten(1) * self.scale
        scores: Tensor = self.head(F.dropout(features, self.drop_rate, self.training))
        return scores

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pictures to (N, F) features, or (N, C) scores."""
        return self.forward_head(self.forward_features(images))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """How timm tells layers apart."""
        return {"stem": r"^whiten", "blocks": r"^groups\.(\d+)"}


class ConvGroup(nn.Module):
    """Convolution, 2x2 max-pooling, and one or two more convolutions; a norm and a GELU after each."""

    def __init__(self, inputs: int, width: int, depth: int, norm_momentum: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_convolution(inputs if place == 0 else width, width) for place in range(depth))
        self.norms = nn.ModuleList(_norm(width, norm_momentum) for _ in range(depth))
        self.residual = depth > 2

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H / 2, W / 2)."""
        maps = shortcut = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](maps), 2)))
        for place in range(1, len(self.convs)):
            maps = self.norms[place](self.convs[place](maps))
            if self.residual and place == len(self.convs) - 1:
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


_SMALL_PICTURES = {"input_size": (3, 32, 32), "num_classes": 10, "first_conv": "whiten", "classifier": "head"}
default_cfgs = generate_default_cfgs({name: dict(_SMALL_PICTURES) for name in ("cifarnet", "cifarnet_wide")})


@register_model
def cifarnet(pretrained: bool = False, **options: Any) -> CifarNet:
    """Six convolutions, 2 million weights: the network of airbench94."""
    return _built("cifarnet", pretrained, options)


@register_model
def cifarnet_wide(pretrained: bool = False, **options: Any) -> CifarNet:
    """Nine convolutions with residual connections, 13 million weights: the network of airbench96."""
    wide = {"widths": (128, 512, 512), "depth": 3, "norm_momentum": 0.1}
    return _built("cifarnet_wide", pretrained, {**wide, **options})


def _built(name: str, pretrained: bool, options: dict[str, Any]) -> CifarNet:
    network: CifarNet = build_model_with_cfg(CifarNet, name, pretrained, **options)
    return network
