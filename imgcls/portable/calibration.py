"""Whether a model's confidence can be believed, and the temperature that corrects it (Guo et al. 2017).

A temperature is the one correction that never changes the most likely class: vector and Dirichlet scaling can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BINS = 15
MAX_VALUES = 1_000_000  # logits that a temperature is fitted on
NAMES = {"ece": "calibration error", "nll": "log loss", "brier": "Brier score"}
LOWEST, HIGHEST = 0.05, 20.0  # temperatures


@dataclass(frozen=True)
class Quality:
    """How far probabilities can be believed; lower is better.

    Attributes:
        ece: expected calibration error, over 15 bins of equal width.
        nll: mean negative log likelihood of the true class.
        brier: mean squared distance of the probabilities from the true class (Brier 1950), 0 to 2.
    """

    ece: float
    nll: float
    brier: float


@dataclass(frozen=True)
class Calibration:
    """A temperature and its effect.

    Attributes:
        temperature: by which logits are divided; above 1 for an overconfident network, below 1 for an underconfident
            one, and 1 where no temperature improves the validation images.
        images: number of validation images that it was fitted on.
        effect: quality without and with the temperature, of `val`, where each half is measured with the temperature of
            the other, and of `test`.
    """

    temperature: float
    images: int
    effect: Mapping[str, tuple[Quality, Quality]]

    def __str__(self) -> str:
        if self.temperature == 1:
            return f"Calibration: no temperature improves the confidence on {self.images} validation images."
        name, title = ("test", "Test") if "test" in self.effect else ("val", "Validation")
        changes = ", ".join(f"{metric} {old:.3g} -> {new:.3g}" for metric, (old, new) in self.changes(name).items())
        confident = "over" if self.temperature > 1 else "under"
        return (
            f"Calibration: the network is {confident}confident on {self.images} validation images; the exported model "
            f"divides its logits by {self.temperature:.3g}. {title} images: {changes}."
        )

    def changes(self, split: str) -> dict[str, tuple[float, float]]:
        """Each quality of `split`, by its name, without and with the temperature."""
        before, after = self.effect[split]
        return {NAMES[name]: (value, getattr(after, name)) for name, value in asdict(before).items()}

    def as_dict(self) -> dict[str, Any]:
        """The content of `calibration` in `model.json`, with pairs of values without and with the temperature."""
        effect = {
            split: {name: [value, getattr(after, name)] for name, value in asdict(before).items()}
            for split, (before, after) in self.effect.items()
        }
        return {"temperature": self.temperature, "images": self.images, "effect": effect}


def calibrate(
    logits: np.ndarray, labels: np.ndarray, test: tuple[np.ndarray, np.ndarray] | None = None, seed: int = 0
) -> Calibration:
    """The temperature for the (N, C) `logits` of validation images, and its effect on them and on those of `test`.

    The images are split into two halves, and each is measured with the temperature of the other; if that does not
    improve their likelihood, the temperature is 1. Otherwise it is fitted on all of them.
    """
    temperature, effect = 1.0, {"val": (quality(logits, labels),) * 2}
    if len(labels) > 1 and np.isfinite(logits).all():
        halves = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
        scaled = np.empty_like(logits, dtype=np.float64)
        for fitted, measured in (halves, halves[::-1]):
            scaled[measured] = logits[measured] / fit_temperature(logits[fitted], labels[fitted])
        before, after = quality(logits, labels), quality(scaled, labels)
        if after.nll < before.nll:
            temperature, effect = fit_temperature(logits, labels), {"val": (before, after)}
    if test is not None and len(test[1]):
        effect["test"] = quality(*test), quality(test[0] / temperature, test[1])
    return Calibration(temperature, len(labels), effect)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in 0.05..20 with the lowest mean log loss, which has one minimum in the inverse temperature.

    The targets are those of Platt (1999), (N + 1) / (N + 2) instead of 1: N images that are all classified correctly do
    not prove that every image will be, and would otherwise have the lowest temperature of all.

    A subset is enough for a single number: of very many images, every n-th is used.
    """
    every = -(-logits.size // MAX_VALUES)
    logits, labels = logits[::every], labels[::every]
    doubt = 1 / (len(labels) + 2)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    true = shifted[np.arange(len(labels)), labels]
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, shifted)
    if logits.shape[1] < 2:
        return 1.0

    def loss(inverse: float) -> float:
        highest = others.max(axis=1)
        rest = np.log(np.exp((others - highest[:, None]) * inverse).sum(axis=1)) + highest * inverse
        total = np.logaddexp(true * inverse, rest)
        return float(np.mean(total - (1 - doubt) * true * inverse - doubt * rest))

    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(np.exp(left)) < loss(np.exp(right)) else (left, high)
    return float(np.exp(-(low + high) / 2))


def quality(logits: np.ndarray, labels: np.ndarray) -> Quality:
    """The quality of the softmax of (N, C) `logits` for (N,) `labels`; N is at least 1."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    totals = powers.sum(axis=1)
    places = np.arange(len(labels))
    nll = np.log(totals) - shifted[places, labels]
    powers /= totals[:, None]
    brier = (powers**2).sum(axis=1) - 2 * powers[places, labels] + 1
    return Quality(expected_error(*confidences(logits, labels)), float(nll.mean()), float(brier.mean()))


def confidences(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the probability of the predicted class, and whether it is correct."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return 1 / shifted.sum(axis=1), logits.argmax(axis=1) == labels


def expected_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The mean gap between confidence and accuracy over bins of equal width, weighted by their number of images."""
    finite = np.isfinite(confidence)  # the confidence of a diverged network is NaN
    bins = np.clip((np.where(finite, confidence, 0) * BINS).astype(int), 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / max(len(confidence), 1))
