"""Filters that whiten image patches, which a first convolution would otherwise have to learn (Page 2018)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

CHUNK_IMAGES = 500  # whose patches are in memory at the same time
INITIAL_PICTURES = 5000
"""Training images that estimate the variance of patches well enough."""


@runtime_checkable
class FromPictures(Protocol):
    """A backbone whose first weights are computed from training images."""

    def initialise_from(self, images: Tensor) -> None:
        """Compute them from normalised images, float (N, 3, H, W)."""


def whitening_filters(images: Tensor, kernel: int, eps: float = 5e-4) -> Tensor:
    """The eigenvectors of the patches' second moments, scaled to unit variance, and their negatives.

    A rectifier after them loses nothing, as each direction is present with both signs.

    Args:
        images: float (N, C, H, W), normalised.
        kernel: side of a patch, px.
        eps: added to the variances, so that directions in which the images hardly vary are not amplified.

    Returns:
        float32 (2 * C * kernel**2, C, kernel, kernel).
    """
    channels = images.shape[1]
    size = channels * kernel**2
    moments, count = torch.zeros(size, size, dtype=torch.float64), 0
    for chunk in images.split(CHUNK_IMAGES):
        patches = chunk.unfold(2, kernel, 1).unfold(3, kernel, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, size)
        moments += (patches.T @ patches).double().cpu()
        count += len(patches)
    variances, directions = torch.linalg.eigh(moments / count)
    filters = (directions / torch.sqrt(variances.clamp(min=0) + eps)).T.float().view(size, channels, kernel, kernel)
    return torch.cat([filters, -filters])
