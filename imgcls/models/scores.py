"""Metrics that follow from the true and false positives of each class, in numpy: of an epoch, and of a bootstrap.

They are those of `torchmetrics.classification` by the same names, without its C² confusion matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Counts:
    """How often each class was predicted and true. Leading dimensions are replicates.

    Attributes:
        tp, fp, fn: float64 (…, C), true positives, false positives and false negatives.
        images: number of images, N.
        multilabel: whether an image has any number of labels.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    images: float
    multilabel: bool = False

    @property
    def tn(self) -> np.ndarray:
        """True negatives, float64 (…, C)."""
        return self.images - self.tp - self.fp - self.fn

    def sums(self) -> Counts:
        """The counts summed over the classes, (…, 1)."""
        tp, fp, fn = (part.sum(axis=-1, keepdims=True) for part in (self.tp, self.fp, self.fn))
        return Counts(tp, fp, fn, self.images * self.tp.shape[-1], self.multilabel)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part` / `whole`, 0 where there is nothing."""
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)


def _accuracy(counts: Counts) -> np.ndarray:
    """Of a class among others the share of its images; of a label the share of all images."""
    if counts.multilabel:
        return share(counts.tp + counts.tn, counts.tp + counts.tn + counts.fp + counts.fn)
    return share(counts.tp, counts.tp + counts.fn)


PER_CLASS: dict[str, Callable[[Counts], np.ndarray]] = {
    "accuracy": _accuracy,
    "f1_score": lambda counts: share(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn),
    "hamming_distance": lambda counts: 1 - _accuracy(counts),
    "jaccard_index": lambda counts: share(counts.tp, counts.tp + counts.fp + counts.fn),
    "negative_predictive_value": lambda counts: share(counts.tn, counts.tn + counts.fn),
    "precision": lambda counts: share(counts.tp, counts.tp + counts.fp),
    "recall": lambda counts: share(counts.tp, counts.tp + counts.fn),
    "specificity": lambda counts: share(counts.tn, counts.tn + counts.fp),
}
"""Functions from counts to the value of each class, (…, C)."""


def _balanced_accuracy(counts: Counts) -> np.ndarray:
    support = counts.tp + counts.fn
    return share(share(counts.tp, support).sum(axis=-1), (support > 0).sum(axis=-1))


def _cohen_kappa(counts: Counts) -> np.ndarray:
    true, predicted = counts.tp + counts.fn, counts.tp + counts.fp
    chance = (true * predicted).sum(axis=-1) / counts.images**2
    return share(counts.tp.sum(axis=-1) / counts.images - chance, 1 - chance)


def _matthews(counts: Counts) -> np.ndarray:
    """Of classes by Gorodkin (2004); of labels, of all of them together."""
    if counts.multilabel:
        counts = counts.sums()
        tp, fp, fn, tn = (part[..., 0] for part in (counts.tp, counts.fp, counts.fn, counts.tn))
        return share(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    true, predicted, images = counts.tp + counts.fn, counts.tp + counts.fp, counts.images
    agreement = counts.tp.sum(axis=-1) * images - (true * predicted).sum(axis=-1)
    spread = [images**2 - (part**2).sum(axis=-1) for part in (true, predicted)]
    return share(agreement, np.sqrt(spread[0] * spread[1]))


OVERALL: dict[str, Callable[[Counts], np.ndarray]] = {
    "balanced_accuracy": _balanced_accuracy,
    "cohen_kappa": _cohen_kappa,
    "matthews_corrcoef": _matthews,
}
"""Functions from counts to one value, (…)."""


def score(name: str, average: str, counts: Counts) -> np.ndarray:
    """The metric `name`, (…).

    Args:
        name: of `PER_CLASS` or `OVERALL`.
        average: of the classes: macro (those that are true or predicted at least once; of labels, all), weighted (by
            their number of images) or micro (of the sums); without meaning for `OVERALL`.
        counts: of each class.
    """
    if name in OVERALL:
        return OVERALL[name](counts)
    if average == "micro":
        return PER_CLASS[name](counts.sums())[..., 0]
    support = counts.tp + counts.fn
    present = np.ones_like(support) if counts.multilabel else (support + counts.fp > 0).astype(np.float64)
    weights = support if average == "weighted" else present
    return share((PER_CLASS[name](counts) * weights).sum(axis=-1), weights.sum(axis=-1))
