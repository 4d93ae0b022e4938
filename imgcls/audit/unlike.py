"""Images that are unlike all training images, by the distance of their features."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

QUANTILE = 0.99
"""Share of the training images that are nearer to the others than the limit."""
NEIGHBOUR = 5
"""The distance is that to this nearest training image: the first one may be a lone copy."""
REFERENCE = 2000
"""Training images of which the limit is taken."""
ROWS_AT_A_TIME = 512


def find_unlike(features: Tensor, training: Tensor, *, seed: int = 0) -> np.ndarray:
    """bool (N,): which of `features`, float32 (N, F), are farther from `training`, float32 (M, F), than those are.

    The distance is that of the directions (cosine) to the fifth nearest (Sun et al. 2022).
    """
    if not len(features) or len(training) <= NEIGHBOUR + 1:
        return np.zeros(len(features), dtype=bool)
    mean = training.mean(dim=0)
    directions = F.normalize(training - mean, dim=1)
    chosen = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))[:REFERENCE]
    limit = torch.quantile(_distances(directions[chosen], directions, NEIGHBOUR + 1), QUANTILE)  # itself is one
    return (_distances(F.normalize(features - mean, dim=1), directions, NEIGHBOUR) > limit).numpy()


def _distances(some: Tensor, directions: Tensor, neighbour: int) -> Tensor:
    """1 - cosine to the given nearest neighbour, float32 (n,)."""
    parts = [
        1 - torch.topk(some[start : start + ROWS_AT_A_TIME] @ directions.T, neighbour, dim=1).values[:, -1]
        for start in range(0, len(some), ROWS_AT_A_TIME)
    ]
    return torch.cat(parts)
