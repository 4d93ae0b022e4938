"""Metrics of the order of the images by their score for a class: ROC and precision-recall curves, and their areas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

MAX_VALUES = 4_000_000  # that are sorted at once


@dataclass(frozen=True)
class Curve:
    """The ROC and the precision-recall curve of one class, at each of its S distinct scores, from the highest.

    Attributes:
        false_positive_rate, recall, precision: float64 (S,).
        auroc, average_precision: their areas; NaN where a class has no images, or all of them.
    """

    false_positive_rate: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    auroc: float
    average_precision: float


@dataclass(frozen=True)
class Areas:
    """The areas of K classes, and how much each of N images moves them.

    Attributes:
        auroc, average_precision: float64 (K,); NaN where a class has no images, or no others.
        auroc_influence, average_precision_influence: float64 (N, K), the derivative by the weight of an image
            (infinitesimal jackknife, Jaeckel 1972; for the AUROC the components of DeLong 1988).
    """

    auroc: np.ndarray
    average_precision: np.ndarray
    auroc_influence: np.ndarray
    average_precision_influence: np.ndarray


def areas(scores: np.ndarray, true: np.ndarray) -> Areas:
    """The areas of (N, K) scores and bool (N, K) labels; equal scores count as one step of the curve."""
    count = len(scores)
    order = np.argsort(-scores, axis=0, kind="stable")
    values, labels = (np.take_along_axis(part, order, axis=0) for part in (scores, true.astype(np.float64)))
    places = np.arange(count)[:, None]
    step = values[1:] != values[:-1]
    edge = np.ones((1, scores.shape[1]), dtype=bool)
    starts = np.maximum.accumulate(np.where(np.concatenate([edge, step]), places, 0), axis=0)
    ends = np.minimum.accumulate(np.where(np.concatenate([step, edge]), places, count)[::-1], axis=0)[::-1]
    positives = labels.sum(axis=0)
    negatives = count - positives
    hits = np.cumsum(labels, axis=0)
    hits_end = np.take_along_axis(hits, ends, axis=0)
    hits_start = np.take_along_axis(hits - labels, starts, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = hits_end / (ends + 1)
        average = (labels * precision).sum(axis=0) / positives
        above = (starts - hits_start) + (ends + 1 - hits_end)  # twice the negatives above
        place = np.where(labels > 0, 1 - above / (2 * negatives), (hits_start + hits_end) / (2 * positives))
        auroc = (labels * place).sum(axis=0) / positives
        auroc_influence = (place - auroc) / np.where(labels > 0, positives, negatives)
        rest = [
            np.take_along_axis(np.cumsum(part[::-1], axis=0)[::-1], starts, axis=0)
            for part in (labels / (ends + 1), labels * precision / (ends + 1))
        ]
        influence = (labels * (precision - average + rest[0]) - rest[1]) / positives
    auroc[negatives == 0] = np.nan
    unsorted = []
    for part in (auroc_influence, influence):
        there = np.empty_like(part)
        np.put_along_axis(there, order, part, axis=0)
        unsorted.append(there)
    return Areas(auroc, average, *unsorted)


def curve(scores: np.ndarray, true: np.ndarray) -> Curve:
    """The curves of (N,) scores and bool (N,) labels."""
    order = np.argsort(-scores, kind="stable")
    values, labels = scores[order], true[order].astype(np.float64)
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    hits = np.cumsum(labels)[ends]
    found = areas(scores[:, None], true[:, None])
    positives = max(1.0, labels.sum())
    return Curve(
        (ends + 1 - hits) / max(1.0, len(labels) - labels.sum()),
        hits / positives,
        hits / (ends + 1),
        float(found.auroc[0]),
        float(found.average_precision[0]),
    )


def in_parts(
    column: Callable[[slice], np.ndarray], labels: np.ndarray, classes: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Scores and bool labels, both (N, K), of some classes at a time.

    Args:
        column: from a range of classes to their scores, (N, K).
        labels: int (N,), or with several labels (N, C).
        classes: C.
    """
    at_once = max(1, MAX_VALUES // max(1, len(labels)))
    for start in range(0, classes, at_once):
        part = slice(start, min(classes, start + at_once))
        numbers = np.arange(part.start, part.stop)
        yield part, column(part), labels[:, None] == numbers if labels.ndim == 1 else labels[:, part] > 0


def softmax_columns(logits: np.ndarray) -> Callable[[slice], np.ndarray]:
    """The softmax of (N, C) `logits`, of a range of classes at a time: float64 (N, K)."""
    totals = np.empty(len(logits))
    at_once = max(1, MAX_VALUES // max(1, logits.shape[1]))
    for start in range(0, len(logits), at_once):
        part = np.asarray(logits[start : start + at_once], dtype=np.float64)
        highest = part.max(axis=1)
        totals[start : start + at_once] = highest + np.log(np.exp(part - highest[:, None]).sum(axis=1))
    return lambda classes: np.exp(np.asarray(logits[:, classes], dtype=np.float64) - totals[:, None])
