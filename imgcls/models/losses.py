"""The loss of each image; the mean is taken where the whole batch is known."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def picture_losses(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Cross entropy of each image, float32 (N,).

    Args:
        logits: (N, C).
        labels: int64 (N,), or float (N, C) for mixed images.
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2015).
        class_weights: (C,), a factor for each class.
        focal_gamma: reduces the loss of images that are already classified with confidence (Lin et al. 2017); 0: off.
    """
    losses = F.cross_entropy(
        logits.float(), labels, weight=class_weights, label_smoothing=label_smoothing, reduction="none"
    )
    if focal_gamma:
        confidence = (-F.cross_entropy(logits.float(), labels, reduction="none")).exp()
        losses = (1 - confidence).clamp(min=1e-6) ** focal_gamma * losses
    return losses
