"""Whether two ways of computing the same probabilities agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-3
"""The largest difference of a probability with which an export is still taken for the same model."""


@dataclass(frozen=True)
class Parity:
    """How well the exported files agree with each other on some pictures."""

    pictures: int
    difference: float
    """The largest difference between two probabilities."""
    agreement: float
    """The share of the pictures for which the likeliest class is the same."""

    @property
    def sound(self) -> bool:
        """The same likeliest class for every picture, and no probability further off than TOLERANCE."""
        return self.agreement == 1.0 and self.difference <= TOLERANCE

    def __str__(self) -> str:
        same = f"same class for {self.agreement:.2%} of {self.pictures} pictures"
        return f"{same}, probabilities within {self.difference:.1e}"


def compare(first: np.ndarray, second: np.ndarray) -> Parity:
    """Compare two tables of probabilities, float32 (N, C).

    Classes that are likeliest in the first to within a millionth are all taken for its likeliest. A network that has
    diverged gives no numbers; for a picture of which both say nan, they agree.

    >>> compare(np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.25, 0.75]]))
    Parity(pictures=2, difference=0.25, agreement=1.0)
    >>> compare(np.array([[0.75, 0.25]]), np.array([[0.25, 0.75]])).agreement
    0.0
    >>> nothing = np.full((1, 2), np.nan)
    >>> compare(nothing, nothing).sound, compare(nothing, np.array([[0.5, 0.5]])).sound
    (True, False)
    """
    if not len(first):
        return Parity(0, 0.0, 1.0)
    undefined = np.isnan(first).any(axis=1) & np.isnan(second).any(axis=1)
    chosen = np.take_along_axis(first, second.argmax(axis=1)[:, None], axis=1)[:, 0]
    agree = undefined | (chosen >= first.max(axis=1) - 1e-6)
    differences = np.where(undefined[:, None], 0.0, np.nan_to_num(np.abs(first - second), nan=1.0))
    return Parity(len(first), float(differences.max()), float(agree.mean()))
