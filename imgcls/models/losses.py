"""The loss of each picture; means are taken where the whole batch is known."""

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
    """Cross entropy of each picture, shape (N,).

    Args:
        logits: (N, C).
        labels: int64 (N,), or float (N, C) where pictures were mixed.
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2015).
        class_weights: (C,), a factor for each class.
        focal_gamma: how much less a picture counts that is already right (Lin et al. 2017); 0: not at all.
    """
    losses = F.cross_entropy(
        logits.float(), labels, weight=class_weights, label_smoothing=label_smoothing, reduction="none"
    )
    if focal_gamma:
        sure = (-F.cross_entropy(logits.float(), labels, reduction="none")).exp()
        losses = (1 - sure).clamp(min=1e-6) ** focal_gamma * losses
    return losses
