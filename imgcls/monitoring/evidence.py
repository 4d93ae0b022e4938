"""Whether something happens more often than on the reference, asked after every image, with few false alarms.

How often it may happen at most, for images like those of the reference, is an exact upper bound (Clopper and Pearson
1934; for the share of images beyond one of the reference, the distribution of an order statistic). Bets on more than
that are nonnegative supermartingales (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by
betting"); their Shiryaev-Roberts sum exceeds M within N images with a probability of at most N / M (Shin, Ramdas and
Rinaldo 2023, "E-detectors").
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.stats import beta

MONTH = 3_000_000
"""Images of 30 days with 100,000 each."""
RISK = 0.05
"""Probability of any false alarm within MONTH images, over all that is watched."""
ODDS = (1.5, 3.0, 8.0, 25.0)  # by which the bets expect the odds to have risen above the bound

Event = tuple[np.ndarray, float]
"""Of each image, bool (T,), whether something happened, and the upper bound of its probability."""


def bound_of_count(count: int, images: int, risk: float) -> float:
    """The probability of what happened to `count` of some images is at most this, except with a probability of `risk`.

    >>> round(bound_of_count(0, 100, 0.05), 4)
    0.0295
    """
    return float(beta.ppf(1 - risk, count + 1, images - count)) if count < images else 1.0


def tail(values: np.ndarray, share: float, risk: float) -> tuple[float, float]:
    """The value below which about `share` of some numbers are, and the bound of the probability that another one is."""
    rank = max(1, round(share * len(values)))
    return float(np.partition(values, rank - 1)[rank - 1]), float(beta.ppf(1 - risk, rank, len(values) - rank + 1))


def change_evidence(events: Iterable[Event], images: int) -> np.ndarray:
    """The logarithm of the Shiryaev-Roberts statistic after each image, float64 (T,), as the mean over all bets.

    It sums over the times at which a change may have begun, so that a late one is noticed as soon as an early one.
    """

    def statistic(gains: np.ndarray) -> np.ndarray:
        return np.asarray(gains + np.logaddexp.accumulate(-np.concatenate([[0.0], gains[:-1]])))

    return _mean(map(statistic, _gains(events)), images)


def wealth(events: Iterable[Event], images: int) -> np.ndarray:
    """The logarithm of what the bets have made of 1 after each image, float64 (T,), as their mean.

    It ever exceeds M with a probability of at most 1 / M (Ville 1939).
    """
    return _mean(_gains(events), images)


def _gains(events: Iterable[Event]) -> Iterable[np.ndarray]:
    for happened, bound in events:
        if bound >= 1:
            continue
        for odds in ODDS:
            rate = odds * bound / (1 - bound + odds * bound)
            yield np.cumsum(np.where(happened, np.log(rate / bound), np.log((1 - rate) / (1 - bound))))


def _mean(logarithms: Iterable[np.ndarray], images: int) -> np.ndarray:
    total, count = np.full(images, -np.inf), 0
    for values in logarithms:
        total, count = np.logaddexp(total, values), count + 1
    return total - np.log(max(count, 1))
