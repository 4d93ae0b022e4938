"""How far a model's confidence can be believed, and the temperature that would mend it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15
MOST_VALUES = 4_000_000  # logits that a temperature is fitted on


@dataclass(frozen=True)
class Calibration:
    """What one temperature would do.

    Attributes:
        before: expected calibration error (15 bins) of the model as it is.
        after: the same with every logit divided by `temperature`, on pictures it was not fitted on.
        temperature: above 1 the model is too sure, below 1 not sure enough.
    """

    before: float
    after: float
    temperature: float


def calibrate(logits: np.ndarray, labels: np.ndarray, seed: int = 0) -> Calibration:
    """The temperature of Guo et al. (2017) for (N, C) `logits`, with an `after` that is not flattered.

    The pictures are cut in two halves: each half's error is measured with the temperature of the other. The
    temperature that is told is fitted on all of them.
    """
    halves = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
    mended = np.empty_like(logits, dtype=np.float64)
    for fitted, measured in (halves, halves[::-1]):
        mended[measured] = logits[measured] / fit_temperature(logits[fitted], labels[fitted])
    return Calibration(
        expected_error(*confidences(logits, labels)),
        expected_error(*confidences(mended, labels)),
        fit_temperature(logits, labels),
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in 0.05..20 of the lowest mean log loss; the loss has one minimum in its inverse.

    It is one number, which a part of very many pictures tells as well: every n-th is taken.
    """
    every = -(-logits.size // MOST_VALUES)
    logits, labels = logits[::every], labels[::every]
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]

    def loss(inverse: float) -> float:
        return float(np.mean(np.log(np.exp(shifted * inverse).sum(axis=1)) - own * inverse))

    low, high = np.log(1 / 20), np.log(1 / 0.05)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(np.exp(left)) < loss(np.exp(right)) else (left, high)
    return float(np.exp(-(low + high) / 2))


def confidences(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the probability of the likeliest class, and whether it is right."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return 1 / shifted.sum(axis=1), logits.argmax(axis=1) == labels


def expected_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The mean gap between confidence and accuracy, over bins of equal width, weighted by their pictures."""
    place = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    gaps = np.bincount(place, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / max(len(confidence), 1))
