"""Where a convolutional network looked: Grad-CAM (Selvaraju et al., 2017) on the last feature map of the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F

from imgcls.models.backbones import Network
from imgcls.preprocessing import Preprocessing


def overlays(
    network: Network, preprocessing: Preprocessing, pixels: np.ndarray, classes: Sequence[int]
) -> np.ndarray | str:
    """uint8 (N, S, S, 3) pictures under the heat of what spoke for `classes`; or why this backbone has no such map.

    Args:
        network: put into evaluation mode.
        preprocessing: of the pictures.
        pixels: uint8 (N, S, S, 3), as `preprocessing.pixels` gives them.
        classes: (N,) the class that is explained in each picture.
    """
    device = next(network.parameters()).device
    images = torch.from_numpy(preprocessing.normalise(pixels)).to(device)
    heat = heat_maps(network, images, torch.tensor(classes, device=device))
    if isinstance(heat, str):
        return heat
    colours = matplotlib.colormaps["inferno"](heat.cpu().numpy())[..., :3] * 255
    weight = 0.55 * heat.cpu().numpy()[..., None]
    return np.rint(pixels * (1 - weight) + colours * weight).astype(np.uint8)


def heat_maps(network: Network, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor | str:
    """float (N, H, W) in 0..1 for normalised (N, 3, H, W) `images`; or a sentence why there is none."""
    network.eval()
    backbone: Any = network.backbone  # of timm; its methods are asked for below
    if not (hasattr(backbone, "forward_features") and hasattr(backbone, "forward_head")):
        return "Grad-CAM needs a backbone that gives a feature map; this one does not."
    with torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            features = backbone.forward_features(images.clone())
        if not isinstance(features, torch.Tensor) or features.ndim != 4 or features.shape[2:].numel() < 4:
            return "Grad-CAM needs the feature map of a convolutional backbone; this one has none that is large enough."
        if hasattr(backbone, "output_fmt") and str(backbone.output_fmt).endswith("NHWC"):
            return "Grad-CAM needs the feature map of a convolutional backbone; this one is a transformer."
        features = features.detach().float().requires_grad_()
        scores = network.head(backbone.forward_head(features))
        (slope,) = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), features)
    heat = F.relu((slope.mean(dim=(2, 3), keepdim=True) * features.detach()).sum(dim=1, keepdim=True))
    heat = F.interpolate(heat, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
