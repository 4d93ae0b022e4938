"""Features of several depths of a backbone, beside each other."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.images.preprocessing import sides
from imgcls.models.network import Network

STAGES = 5
"""The most stages of a backbone that are looked at; of a transformer with more blocks, as many of them."""
CHANNELS = 384
"""The most channels of a stage; of one with more, the means of neighbouring ones."""
QUARTERED = 2
"""The last stages, whose means are those of each quarter of the image."""
USUAL_SIDE = 224


class Depths(nn.Module):
    """A timm backbone whose features are those of several depths (Head2Toe, Evci et al. 2022).

    They are the means and the standard deviations of each stage's maps over their positions, the means of the last
    stages over each quarter of them, and, last, the features that the backbone alone would have. Early stages keep what
    the last one, which was trained to tell apart other classes, has dropped; quarters, where in the image it is.

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
        stages = maps[:: -(-len(maps) // STAGES)]
        whole = len(stages) - QUARTERED
        parts = [_summary(stage.float(), 1 if index < whole else 2) for index, stage in enumerate(stages)]
        return torch.cat([*parts, self.backbone.forward_head(last).float()], dim=1)  # type: ignore[operator]


def _summary(stage: Tensor, side: int) -> Tensor:
    """The means of (N, C, H, W) maps in each of `side` times `side` parts, then their standard deviations.

    (N, (side * side + 1) * min(C, CHANNELS)).
    """
    means = F.adaptive_avg_pool2d(stage, side).flatten(2).transpose(1, 2)
    rows = torch.cat([means, stage.flatten(2).std(dim=2, correction=0)[:, None]], dim=1)
    return F.adaptive_avg_pool1d(rows, min(stage.shape[1], CHANNELS)).flatten(1)


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
