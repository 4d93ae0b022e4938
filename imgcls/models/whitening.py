"""Filters that whiten the patches of pictures: what a first convolution would have to learn (Page 2018)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

AT_ONCE = 500  # pictures whose patches are in memory together
INITIAL_PICTURES = 5000
"""Enough to know how patches vary."""


@runtime_checkable
class FromPictures(Protocol):
    """A backbone whose first weights are computed from training pictures."""

    def initialise_from(self, images: Tensor) -> None:
        """Take them from normalised pictures, float (N, 3, H, W)."""


def whitening_filters(images: Tensor, kernel: int, eps: float = 5e-4) -> Tensor:
    """The eigenvectors of the patches' second moments, scaled to unit variance, and their negatives.

    A rectifier after them loses nothing, as it sees each direction with both signs.

    Args:
        images: float (N, C, H, W), normalised.
        kernel: side of a patch, px.
        eps: added to the variances, so that directions in which the pictures hardly vary are not blown up.

    Returns:
        float32 (2 * C * kernel**2, C, kernel, kernel).
    """
    channels = images.shape[1]
    size = channels * kernel**2
    moments, count = torch.zeros(size, size, dtype=torch.float64), 0
    for some in images.split(AT_ONCE):
        patches = some.unfold(2, kernel, 1).unfold(3, kernel, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, size)
        moments += (patches.T @ patches).double().cpu()
        count += len(patches)
    variances, directions = torch.linalg.eigh(moments / count)
    filters = (directions / torch.sqrt(variances.clamp(min=0) + eps)).T.float().view(size, channels, kernel, kernel)
    return torch.cat([filters, -filters])
