"""Whether a model's confidence matches its accuracy, and the temperature that would calibrate it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15
MAX_VALUES = 4_000_000  # logits that a temperature is fitted on


@dataclass(frozen=True)
class Calibration:
    """The effect of temperature scaling.

    Attributes:
        before: expected calibration error (15 bins) of the model as it is.
        after: the same with every logit divided by a temperature, on images it was not fitted on.
        temperature: above 1 for an overconfident model, below 1 for an underconfident one.
    """

    before: float
    after: float
    temperature: float


def calibrate(logits: np.ndarray, labels: np.ndarray, seed: int = 0) -> Calibration:
    """The temperature of Guo et al. (2017) for (N, C) `logits`, with an unbiased `after`.

    The images are split into two halves: the error of each half is measured with the temperature of the other. The
    returned temperature is fitted on all of them.
    """
    halves = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
    scaled = np.empty_like(logits, dtype=np.float64)
    for fitted, measured in (halves, halves[::-1]):
        scaled[measured] = logits[measured] / fit_temperature(logits[fitted], labels[fitted])
    return Calibration(
        expected_error(*confidences(logits, labels)),
        expected_error(*confidences(scaled, labels)),
        fit_temperature(logits, labels),
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in 0.05..20 with the lowest mean log loss, which has one minimum in the inverse temperature.

    A subset is enough for a single number: of very many images, every n-th is used.
    """
    every = -(-logits.size // MAX_VALUES)
    logits, labels = logits[::every], labels[::every]
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    true = shifted[np.arange(len(labels)), labels]

    def loss(inverse: float) -> float:
        return float(np.mean(np.log(np.exp(shifted * inverse).sum(axis=1)) - true * inverse))

    low, high = np.log(1 / 20), np.log(1 / 0.05)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(np.exp(left)) < loss(np.exp(right)) else (left, high)
    return float(np.exp(-(low + high) / 2))


def confidences(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the probability of the predicted class, and whether it is correct."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return 1 / shifted.sum(axis=1), logits.argmax(axis=1) == labels


def expected_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The mean gap between confidence and accuracy over bins of equal width, weighted by their number of images."""
    bins = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / max(len(confidence), 1))
