"""Whether two ways of computing the same probabilities agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-3
"""Up to this difference in a probability an export counts as the same model."""


@dataclass(frozen=True)
class Parity:
    """How well two sets of probabilities for the same images agree."""

    pictures: int
    difference: float
    """The largest difference between two probabilities."""
    agreement: float
    """The share of the images with the same most likely class."""

    @property
    def sound(self) -> bool:
        """Whether every image has the same most likely class and no probability differs by more than TOLERANCE."""
        return self.agreement == 1.0 and self.difference <= TOLERANCE

    def __str__(self) -> str:
        return f"same class for {self.agreement:.2%} of {self.pictures} images, {describe_difference(self.difference)}"


def describe_difference(difference: float) -> str:
    """What is said of the largest difference between two probabilities.

    >>> describe_difference(3e-7), describe_difference(0.0)
    ('probabilities within 3e-07', 'equal probabilities')
    """
    return f"probabilities within {difference:.2g}" if difference else "equal probabilities"


def compare(first: np.ndarray, second: np.ndarray) -> Parity:
    """Compare two arrays of probabilities, float32 (N, C).

    Classes within a millionth of the first's maximum all count as its most likely one. A diverged network outputs NaN;
    the two agree on an image for which both do.

    >>> compare(np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.25, 0.75]]))
    Parity(pictures=2, difference=0.25, agreement=1.0)
    >>> compare(np.array([[0.75, 0.25]]), np.array([[0.25, 0.75]])).agreement
    0.0
    >>> diverged = np.full((1, 2), np.nan)
    >>> compare(diverged, diverged).sound, compare(diverged, np.array([[0.5, 0.5]])).sound
    (True, False)
    """
    if not len(first):
        return Parity(0, 0.0, 1.0)
    undefined = np.isnan(first).any(axis=1) & np.isnan(second).any(axis=1)
    of_second = np.take_along_axis(first, second.argmax(axis=1)[:, None], axis=1)[:, 0]
    agree = undefined | (of_second >= first.max(axis=1) - 1e-6)
    differences = np.where(undefined[:, None], 0.0, np.nan_to_num(np.abs(first - second), nan=1.0))
    return Parity(len(first), float(differences.max()), float(agree.mean()))
