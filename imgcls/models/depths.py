"""Features of several depths of a backbone, beside each other."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.models.network import Network
from imgcls.preprocessing import sides

STAGES = 5
"""The most stages of a backbone that are looked at; of a transformer with more blocks, as many of them."""
CHANNELS = 256
"""The most channels of a stage; of one with more, the means of neighbouring ones."""
USUAL_SIDE = 224


class Depths(nn.Module):
    """A timm backbone whose features are those of several depths (Head2Toe, Evci et al. 2022).

    They are the means and the standard deviations of each stage's maps over their positions, and, last, the features
    that the backbone alone would have. Early stages keep what the last one, which was trained to tell apart other
    classes, has dropped.

    Args:
        backbone: a timm model without its classifier, with `forward_intermediates`.
        image: (1, channels, H, W), of a size that it can process.
    """

    def __init__(self, backbone: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            self.num_features = self.eval()(image).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) normalised images to (N, num_features) features."""
        last, maps = self.backbone.forward_intermediates(images)  # type: ignore[operator]
        parts = [_summary(stage.float()) for stage in maps[:: -(-len(maps) // STAGES)]]
        return torch.cat([*parts, self.backbone.forward_head(last).float()], dim=1)  # type: ignore[operator]


def _summary(stage: Tensor) -> Tensor:
    """Mean and standard deviation of (N, C, H, W) maps over their positions, (N, 2 * min(C, CHANNELS))."""
    std, mean = torch.std_mean(stage, dim=(2, 3), correction=0)
    if stage.shape[1] > CHANNELS:
        mean, std = (F.adaptive_avg_pool1d(values[:, None], CHANNELS)[:, 0] for values in (mean, std))
    return torch.cat([mean, std], dim=1)


def at_depths(network: Network) -> Network:
    """`network` without its head, with features of several depths, the last ones its own; its weights are shared.

    A backbone that timm cannot look into stays as it is. views=where_unsure, which needs the head, becomes one view.
    """
    if not hasattr(network.backbone, "forward_intermediates"):
        return network
    architecture = network.architecture
    if architecture.views == "where_unsure":
        architecture = replace(architecture, views="one")
    image = torch.zeros(1, architecture.in_channels, *sides(architecture.image_size or USUAL_SIDE))
    training, frozen = network.training, network.frozen
    deep = Network(Depths(network.backbone, image), nn.Identity(), architecture)
    deep.freeze(frozen)
    return deep.train(training)
