"""Which regions a convolutional network used: Grad-CAM (Selvaraju et al., 2017) on a feature map of the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imgcls.images.channels import preview
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.network import Network

MIN_CELLS = 9  # of a map that is fine enough to show a region


def overlays(
    network: Network, preprocessing: Preprocessing, pixels: np.ndarray, classes: Sequence[int]
) -> np.ndarray | str:
    """uint8 (N, S, S, 3) images overlaid with a heat map of the evidence for `classes`; or a sentence why not.

    Args:
        network: put into evaluation mode.
        preprocessing: of the images.
        pixels: uint8 (N, S, S, 3), as returned by `preprocessing.pixels`.
        classes: (N,) the class to explain in each image.
    """
    device = next(network.parameters()).device
    images = torch.from_numpy(preprocessing.normalise(pixels)).to(device)
    heat = heat_maps(network, images, torch.tensor(classes, device=device))
    if isinstance(heat, str):
        return heat
    colours = matplotlib.colormaps["inferno"](heat.cpu().numpy())[..., :3] * 255
    weight = 0.55 * heat.cpu().numpy()[..., None]
    shown = np.stack([np.asarray(preview(image)) for image in pixels])
    return np.rint(shown * (1 - weight) + colours * weight).astype(np.uint8)


def heat_maps(network: Network, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor | str:
    """float (N, H, W) in 0..1 for normalised (N, 3, H, W) `images`; or a sentence why there are none."""
    network.eval()
    backbone: Any = network.backbone  # usually timm's
    if not (hasattr(backbone, "forward_features") and hasattr(backbone, "forward_head")):
        return "Grad-CAM needs a backbone with a feature map; this one has none."
    with torch.inference_mode(False), torch.enable_grad():
        images = images.clone().requires_grad_()  # a graph even where all weights are frozen
        features, logits = _feature_map(backbone, network.head, images)
        if features is None or str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
            return "Grad-CAM needs the feature map of a convolutional backbone; this one has none."
        (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    slope, features = slope.float(), features.detach().float()
    heat = F.relu((slope.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1, keepdim=True))
    heat = F.interpolate(heat, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def _feature_map(backbone: Any, head: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The feature map to explain, or None if the backbone ends without one; and the logits computed from it.

    It is the last map, or, if small images have shrunk to a few cells, the last one with more cells.
    """
    maps: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2:].numel() >= MIN_CELLS:
            maps.append(output)

    hooks = [module.register_forward_hook(keep) for module in backbone.modules()]
    try:
        features = backbone.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    logits = head(backbone.forward_head(features))
    if not isinstance(features, torch.Tensor) or features.ndim != 4:
        return None, logits
    if features.shape[2:].numel() >= MIN_CELLS:
        return features, logits
    return (maps[-1] if maps else None), logits
