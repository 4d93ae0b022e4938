"""Some of many, spread evenly."""

from __future__ import annotations

import numpy as np


def spread_positions(total: int, count: int) -> np.ndarray:
    """Up to `count` of the positions 0 to `total` - 1, evenly spread, the first and the last among them: int64, sorted.

    >>> spread_positions(9, 3), spread_positions(2, 5)
    (array([0, 4, 8]), array([0, 1]))
    """
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
