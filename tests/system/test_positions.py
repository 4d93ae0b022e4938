"""Some of many, spread evenly."""

from __future__ import annotations

import numpy as np
import pytest

from imgcls.system.positions import spread_positions


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(9, 3, [0, 4, 8]), (2, 5, [0, 1]), (1, 1, [0]), (7, 7, list(range(7))), (0, 3, [])]
)
def test_positions_are_spread_from_the_first_to_the_last(total: int, count: int, expected: list[int]) -> None:
    found = spread_positions(total, count)
    assert found.dtype == np.int64
    assert found.tolist() == expected
