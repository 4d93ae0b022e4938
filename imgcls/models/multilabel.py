"""Several labels for one image, or none: loss, metrics and thresholds of `task=multilabel`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    BinaryCalibrationError,
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelF1Score,
)

from imgcls.models.metrics import CALIBRATION_BINS, check_custom_metrics
from imgcls.models.named_metrics import Counted

ANSWERED = (Counted, MultilabelExactMatch)
"""Metrics of the labels that are given, and not of their probabilities."""
ASYMMETRIC_MARGIN = 0.05  # by which the probabilities of negatives are lowered (Ridnik et al. 2021)


def label_losses(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
    negative_gamma: float = 0.0,
) -> Tensor:
    """Binary cross entropy of each image, float32 (N,), the mean over its labels.

    Args:
        logits: (N, C).
        labels: (N, C), 0 or 1, or shares of mixed images.
        label_smoothing: share of the target that is moved to 1/2.
        class_weights: (C,), a factor for each class.
        focal_gamma: reduces the loss of labels that are right with confidence (Lin et al. 2017); 0: off.
        negative_gamma: above 0 the asymmetric loss (Ridnik et al. 2021): the focal exponent of absent labels alone,
            whose probabilities are lowered by a margin; `focal_gamma` is then that of present ones.
    """
    logits = logits.float()
    targets = labels.float() * (1 - label_smoothing) + label_smoothing / 2
    if negative_gamma:
        present = torch.sigmoid(logits)
        absent = (1 - present + ASYMMETRIC_MARGIN).clamp(max=1)
        losses = -targets * (1 - present) ** focal_gamma * F.logsigmoid(logits)
        losses = losses - (1 - targets) * (1 - absent) ** negative_gamma * absent.log()
    else:
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        if focal_gamma:
            confidence = torch.exp(-F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none"))
            losses = (1 - confidence).clamp(min=1e-6) ** focal_gamma * losses
    if class_weights is not None:
        losses = losses * class_weights
    return losses.mean(dim=1)


def label_metrics(num_classes: int, prefix: str, more: Mapping[str, Metric] | None = None) -> MetricCollection:
    """Loss, mean average precision, macro and micro F1, subset accuracy, calibration error of the labels, and `more`.

    `update_label_metrics` adds a batch to all of them. Raises UserError for a name in `more` that is taken.
    """
    metrics: dict[str, Metric] = {
        "loss": MeanMetric(nan_strategy="disable"),
        "map": MultilabelAveragePrecision(num_classes, average="macro", validate_args=False),
        "macro_f1": MultilabelF1Score(num_classes, average="macro", validate_args=False),
        "micro_f1": MultilabelF1Score(num_classes, average="micro", validate_args=False),
        "subset_accuracy": MultilabelExactMatch(num_classes, validate_args=False),
        "ece": BinaryCalibrationError(n_bins=CALIBRATION_BINS, validate_args=False),
    }
    metrics |= check_custom_metrics(more or {}, metrics)
    return MetricCollection(dict(metrics), prefix=prefix, compute_groups=False)


def update_label_metrics(
    metrics: MetricCollection, logits: Tensor, labels: Tensor, losses: Tensor, thresholds: Tensor
) -> None:
    """Add a batch of float32 (N, C), labels (N, C) and losses (N,); `thresholds`, (C,), decide for F1 and subsets."""
    if not len(labels):
        return
    probabilities, labels = torch.sigmoid(logits), labels.long()
    answers = (probabilities >= thresholds).long()
    for name, metric in metrics.items(keep_base=True):
        if name == "loss":
            metric.update(losses)
        elif name in ("macro_f1", "micro_f1", "subset_accuracy") or isinstance(metric, ANSWERED):
            metric.update(answers, labels)
        elif name == "ece":
            metric.update(probabilities.reshape(-1), labels.reshape(-1))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                metric.update(probabilities, labels)


AIMS = ("f1", "precision", "recall")


def choose_thresholds(
    probabilities: np.ndarray, labels: np.ndarray, aim: str = "f1", at_least: float = 0.9
) -> np.ndarray:
    """The threshold of each class, float64 (C,), for (N, C) probabilities and labels.

    Args:
        aim: `f1`: the highest F1. `precision`: the highest recall of those with a precision of `at_least`; `recall`:
            the highest precision of those with such a recall. Where none has, the highest F1.
        at_least: the required precision or recall.

    A class without positives has 0.5.
    """
    chosen = np.full(probabilities.shape[1], 0.5)
    for label in range(probabilities.shape[1]):
        order = np.argsort(-probabilities[:, label], kind="stable")
        values, true = probabilities[order, label].astype(np.float64), labels[order, label].astype(np.int64)
        if not true.any():
            continue
        ends = np.flatnonzero(np.append(values[:-1] != values[1:], True))  # the last of equal values
        hits, found = np.cumsum(true)[ends], ends + 1
        precision, recall = hits / found, hits / true.sum()
        f1 = 2 * hits / (found + true.sum())
        wanted, other = {"f1": (f1, f1), "precision": (precision, recall), "recall": (recall, precision)}[aim]
        allowed = wanted >= at_least if aim != "f1" else np.ones(len(f1), dtype=bool)
        score = np.where(allowed, other, -1.0) if allowed.any() else f1
        best = int(score.argmax())
        below = values[ends[best] + 1] if ends[best] + 1 < len(values) else 0.0
        chosen[label] = (values[ends[best]] + below) / 2
    return chosen
