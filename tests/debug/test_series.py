"""The numbers of all steps, and what is kept up to date about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pytest

from imgcls.debug import series
from imgcls.debug.series import Series


def test_what_is_kept_up_to_date_is_what_all_numbers_say() -> None:
    dice = np.random.default_rng(0)
    values = np.exp(dice.normal(size=200)).tolist()
    values[37], values[121] = math.nan, math.inf
    grown = Series()
    for start in range(0, 200, 7):
        grown.extend(values[start : start + 7])
        seen = values[: start + 7]
        means = [fmean(seen[first : first + 10]) for first in range(0, len(seen) - 9, 10)]
        windows = grown.windows(10)
        np.testing.assert_array_equal(windows.means, means)
        assert windows.lowest == min((mean for mean in means[1:] if not math.isnan(mean)), default=math.inf)
        assert list(grown.not_finite) == [step for step, value in enumerate(seen) if not math.isfinite(value)]
        peak = max(value for value in seen if not math.isnan(value))
        assert grown.half_peak == next(step for step, value in enumerate(seen) if value >= peak / 2)
    assert len(grown) == 200
    assert grown[-2:] == Series(values[-2:])[:]
    assert Series().half_peak == 0


def test_a_look_takes_the_time_of_the_new_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def mean(values: Sequence[float]) -> float:
        taken.append(len(values))
        return fmean(values)

    monkeypatch.setattr(series, "fmean", mean)
    losses = Series([1.0] * 1000)
    assert len(losses.windows(10).means) == 100
    taken.clear()
    losses.extend([0.5] * 25)
    assert losses.windows(10).lowest == 0.5
    assert taken == [10, 10]
