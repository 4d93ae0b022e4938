"""A number for each step of a training, with what the rules ask of all steps kept up to date."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, overload

import numpy as np


class Series(Sequence[float]):
    """The numbers of all steps, in order: float64, and only ever extended.

    The rules are checked again and again while it grows to half a million. Each of its answers continues from the last
    one, so that it takes the time of the steps since then.
    """

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._values = array("d")
        self._not_finite: list[int] = []
        self._peak, self._rise = 0.0, 0
        self._windows: dict[int, Windows] = {}
        self.extend(values)

    def append(self, value: float) -> None:
        """Add the number of one more step."""
        self._values.append(value)
        if not math.isfinite(value):
            self._not_finite.append(len(self._values) - 1)
        if value > self._peak:
            self._peak = value
            while not self._values[self._rise] >= value / 2:  # NaN is not
                self._rise += 1

    def extend(self, values: Iterable[float]) -> None:
        """Add the numbers of more steps."""
        for value in values:
            self.append(value)

    def numpy(self) -> np.ndarray:
        """All numbers, float64 (N,)."""
        return np.array(self._values)

    @property
    def not_finite(self) -> Sequence[int]:
        """The steps whose number is infinite or NaN."""
        return self._not_finite

    @property
    def peak(self) -> float:
        """The largest number; 0 if none is positive."""
        return self._peak

    @property
    def half_peak(self) -> int:
        """The first step with at least half of the largest number; 0 if none is positive."""
        return self._rise

    def windows(self, size: int) -> Windows:
        """The mean of each `size` steps."""
        windows = self._windows.setdefault(size, Windows(size))
        windows.update(self._values)
        return windows

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[float]: ...
    def __getitem__(self, index: int | slice) -> float | Sequence[float]:
        return self._values[index]

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Series) and self._values == other._values


class Windows:
    """Means of `size` successive numbers; those of an incomplete window at the end are left out."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.means = array("d")
        """Of the windows, in order."""
        self.lowest = math.inf
        """The smallest mean after the first one; infinity while there is none."""

    def update(self, values: Sequence[float]) -> None:
        """Add the windows that `values` have complete since the last call."""
        for start in range(len(self.means) * self.size, len(values) - self.size + 1, self.size):
            mean = fmean(values[start : start + self.size])
            if len(self.means) and mean < self.lowest:
                self.lowest = mean
            self.means.append(mean)
