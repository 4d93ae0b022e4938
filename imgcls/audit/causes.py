"""Why each validation image is classified wrongly: one cause per error."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

WRONG_LABEL = "wrong label"
CONTRADICTORY = "contradictory duplicate"
UNLIKE = "unlike the training images"
CROP = "cut off by the crop"
POOR = "poor image"
PAIR = "confusable pair"
UNEXPLAINED = "unexplained"
CAUSES = (WRONG_LABEL, CONTRADICTORY, UNLIKE, CROP, POOR, PAIR, UNEXPLAINED)
"""In the order in which they are asked: an error has the first that applies."""
FEWEST = 2
"""Errors of a confusable pair."""
CHANCE = 0.01
"""Probability that a pair has as many errors by chance, if all pairs of classes were alike."""


def find_pairs(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> set[tuple[int, int]]:
    """The pairs of classes, the smaller first, that are confused more often than chance would.

    Args:
        labels, predicted: int64 (N,), of any images; those where both are the same do not matter.
        num_classes: number of classes, of at least 2.
    """
    from scipy.stats import poisson

    wrong = labels != predicted
    pairs, counts = np.unique(np.sort(np.stack([labels, predicted], axis=1)[wrong], axis=1), axis=0, return_counts=True)
    expected = wrong.sum() / (num_classes * (num_classes - 1) / 2)
    often = (counts >= FEWEST) & (poisson.sf(counts - 1, expected) < CHANCE)
    return {(int(one), int(other)) for one, other in pairs[often]}


def assign(
    labels: np.ndarray,
    predicted: np.ndarray,
    candidates: Sequence[tuple[str, np.ndarray]],
    pairs: Collection[tuple[int, int]],
) -> np.ndarray:
    """str (N,): the cause of each error, '' where the prediction is right.

    Args:
        labels, predicted: int64 (N,).
        candidates: causes in the order of CAUSES, each with the images that it applies to, bool (N,).
        pairs: confusable ones, the smaller class first.
    """
    wrong = labels != predicted
    confused = [tuple(sorted(pair)) in pairs for pair in zip(labels.tolist(), predicted.tolist(), strict=True)]
    causes = np.where(wrong, UNEXPLAINED, "").astype(object)
    for cause, applies in [(PAIR, np.array(confused, dtype=bool)), *reversed(candidates)]:
        causes[wrong & applies] = cause
    return causes
