"""Sets of classes that hold the true one in a given share of the cases, by split conformal prediction.

The score of a class is that of RAPS (Angelopoulos et al. 2021, after Romano et al. 2020) without its random part, so
that an image always has the same set: the probability of the classes above it, and a penalty for its rank. The set of
an image is its likeliest classes up to a bound, that share of the scores of the true classes of validation images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from imgcls.system.checks import check_value, share

TUNED_FOR = 0.95  # coverage at which the penalty is chosen
PENALTIES = (0.0, 0.002, 0.01, 0.05, 0.1, 0.2, 0.5)
FREE_RANKS = (1, 2, 5)
MAX_SCORES = 400  # that are stored: a step of 0.25 points of coverage
TOLERANCE = 1e-6  # of scores: engines differ by as much
ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class ClassSets:
    """What turns probabilities into sets of classes.

    Attributes:
        penalty: of each rank below the `free` ones, lambda of RAPS.
        free: number of ranks without a penalty, k of RAPS.
        scores: float (n,), of the true classes of validation images, ascending; of more than MAX_SCORES as many
            of their quantiles.
        images: number of validation images.
        test: of the sets with a coverage of 0.95, the share that holds the true class, and their mean size, on test
            images; None: not measured.
    """

    penalty: float
    free: int
    scores: np.ndarray
    images: int
    test: tuple[float, float] | None = None

    def __str__(self) -> str:
        text = f"Sets of classes, from {self.images:,} validation images: with coverage={TUNED_FOR}"
        if self.test is None:
            return f"{text} they contain the true class of as many images."
        share, size = self.test
        return f"{text} they contain the true class of {share:.1%} of the test images; their mean size is {size:.3g}."

    def measured(self, probabilities: np.ndarray, labels: np.ndarray) -> ClassSets:
        """The same with their effect on (N, C) `probabilities` for test images of the classes `labels`, int (N,)."""
        if not len(labels) or not np.isfinite(probabilities).all():
            return self
        sizes, ranks = self.sizes(probabilities, TUNED_FOR), ranks_of(probabilities, labels)
        return replace(self, test=(float((ranks <= sizes).mean()), float(sizes.mean())))

    def sizes(self, probabilities: np.ndarray, coverage: float) -> np.ndarray:
        """How many of its likeliest classes each image's set has, int (N,), at least 1.

        Args:
            probabilities: (N, C) of the model.
            coverage: the share of images whose set holds the true class, between 0 and 1. It is reached in the mean
                over images like those of validation; with too few of these for it, the sets have all classes.
        """
        place = math.ceil((len(self.scores) + 1) * check_coverage(coverage) - TOLERANCE)
        bound = self.scores[place - 1] if place <= len(self.scores) else np.inf
        parts = [np.empty(0, np.int64)]
        for start in range(0, len(probabilities), ROWS_AT_A_TIME):
            ordered = -np.sort(-probabilities[start : start + ROWS_AT_A_TIME].astype(np.float64), axis=1)
            inside = (np.cumsum(ordered, axis=1) - ordered + self._penalties(ordered.shape[1])) <= bound + TOLERANCE
            parts.append(np.maximum(inside.sum(axis=1), 1))
        return np.concatenate(parts)

    def _penalties(self, classes: int) -> np.ndarray:
        return self.penalty * np.maximum(np.arange(1, classes + 1) - self.free, 0)

    def as_dict(self) -> dict[str, Any]:
        """The content of `sets` in `model.json`."""
        scores = [round(float(score), 7) for score in self.scores]
        test = {} if self.test is None else {"test": {"coverage": self.test[0], "size": self.test[1]}}
        return {"penalty": self.penalty, "free": self.free, "images": self.images, **test, "scores": scores}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassSets:
        """Read what `as_dict` wrote. Raises KeyError, TypeError or ValueError if it is damaged."""
        scores = np.array([float(score) for score in values["scores"]])
        test = values.get("test")
        effect = (float(test["coverage"]), float(test["size"])) if test else None
        found = cls(float(values["penalty"]), int(values["free"]), scores, int(values["images"]), effect)
        if not np.isfinite([found.penalty, *scores]).all() or found.penalty < 0 or (np.diff(scores) < 0).any():
            raise ValueError("sets are not ascending numbers")
        return found


def fit_sets(probabilities: np.ndarray, labels: np.ndarray, seed: int = 0) -> ClassSets | None:
    """The sets for a model with these (N, C) `probabilities` for validation images of the classes `labels`, int (N,).

    The penalty is that with the smallest sets on the second half of the images, with the bound of the first. None if
    the probabilities are not finite, or there are no images.
    """
    if not len(labels) or not np.isfinite(probabilities).all():
        return None
    mass, rank = _above(probabilities, labels)
    penalty, free = 0.0, 1
    order = np.random.default_rng(seed).permutation(len(labels))
    first, second = order[: len(labels) // 2], order[len(labels) // 2 :]
    if len(first) > 1 / (1 - TUNED_FOR):
        smallest = np.inf
        for candidate in ((0.0, 1), *((p, k) for p in PENALTIES[1:] for k in FREE_RANKS)):
            size = _calibrated(*candidate, mass[first], rank[first]).sizes(probabilities[second], TUNED_FOR).mean()
            if size < smallest:
                smallest, (penalty, free) = size, candidate
    return _calibrated(penalty, free, mass, rank)


def _calibrated(penalty: float, free: int, mass: np.ndarray, rank: np.ndarray) -> ClassSets:
    scores = np.sort(mass + penalty * np.maximum(rank - free, 0))
    count = len(scores)
    if count > MAX_SCORES:  # rounded up, so that no coverage is lost
        places = np.ceil((count + 1) * np.arange(1, MAX_SCORES + 1) / (MAX_SCORES + 1)).astype(int)
        scores = scores[np.minimum(places, count) - 1]
    return ClassSets(penalty, free, scores, count)


def _above(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the classes above the true one, float64 (N,), and its rank from 1, int (N,)."""
    places = np.arange(len(labels))
    order = np.argsort(-probabilities, axis=1, kind="stable")
    rank = (order == labels[:, None]).argmax(axis=1)
    ordered = np.take_along_axis(probabilities, order, axis=1).astype(np.float64)
    mass = np.cumsum(ordered, axis=1) - ordered
    return mass[places, rank], rank + 1


def ranks_of(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rank of the true class of each image from 1, int (N,); among equals the lower index comes first."""
    return _above(probabilities, labels)[1]


def check_coverage(value: Any) -> float:
    """`value`, a number or a text, as a number between 0 and 1. Raises UserError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = value
    check_value("coverage", number, share)
    return float(number)
