"""Evaluation metrics: means over images, exact for any batch size and number of processes.

A batch of N images costs O(N · C) time, for its probabilities, and O(N + C) memory beyond them, C being the number of
classes: with thousands of classes, torchmetrics' own updates are quadratic in C, or hold several arrays of N · C.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score
from torchmetrics.utilities.distributed import gather_all_tensors

from imgcls.errors import UserError
from imgcls.models.named_metrics import Counted

CALIBRATION_BINS = 15
BLOCKWISE_CLASSES = 4096  # with fewer, blocks save nothing


class MacroF1(MulticlassF1Score):
    """Macro F1, counted in O(N + C): only the margins of torchmetrics' (C, C) matrix are needed."""

    tp: Tensor
    fp: Tensor
    fn: Tensor

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the predicted and the true classes of a batch, int64 (N,)."""
        hits = (preds == target).long()
        misses = 1 - hits
        # index_add is exact on integers and, unlike bincount, does not wait for a GPU
        self.tp = self.tp.index_add(0, target, hits)
        self.fp = self.fp.index_add(0, preds, misses)
        self.fn = self.fn.index_add(0, target, misses)


class CalibrationError(MulticlassCalibrationError):
    """Expected calibration error, of confidences that are known already."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the confidences of a batch, float32 (N,), and whether its images are classified correctly, bool (N,)."""
        self.confidences.append(preds.float())
        self.accuracies.append(target.float())


def evaluation_metrics(num_classes: int, prefix: str, more: Mapping[str, Metric] | None = None) -> MetricCollection:
    """Loss, accuracy, top-5 accuracy (more than five classes), macro F1, expected calibration error, and `more`.

    `update_metrics` adds a batch to all of them. Raises UserError for a name in `more` that is taken, or no metric.
    """
    metrics: dict[str, Any] = {
        "loss": MeanMetric(nan_strategy="disable"),  # the default would drop the NaNs of a training that diverged
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "macro_f1": MacroF1(num_classes, average="macro", validate_args=False),
        "ece": CalibrationError(num_classes, n_bins=CALIBRATION_BINS, validate_args=False),
    }
    if num_classes > 5:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
    metrics |= check_custom_metrics(more or {}, (*metrics, "accuracy_top5"))
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def check_custom_metrics(more: Mapping[str, Metric], taken: Container[str]) -> dict[str, Metric]:
    """Copies of the metrics in `more`. Raises UserError for a name that is `taken`, or no metric."""
    for name, metric in more.items():
        if name in taken or not name.isidentifier():
            raise UserError(f"metrics.{name}: this name is taken, or no name. Choose one of letters, digits and _.")
        if not isinstance(metric, Metric):
            raise UserError(f"metrics.{name}: {type(metric).__name__} is not a metric of torchmetrics (a Metric).")
    return {name: metric.clone() for name, metric in more.items()}


def update_metrics(metrics: MetricCollection, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
    """Add a batch of float32 (N, C), int64 (N,) and float32 (N,); N is 0 in a process that has no images.

    Custom metrics are updated with the probabilities and the labels.
    """
    if not len(labels):  # torchmetrics cannot add an empty batch, and allows a process that added none
        return
    # The probabilities' order, not the logits': it is that of `Outputs` and of the portable model.
    probabilities = logits.softmax(dim=1)
    confidence, predicted, best = best_classes(probabilities)
    hits = predicted == labels
    for name, metric in metrics.items(keep_base=True):
        if name == "loss":
            metric.update(losses)
        elif name == "ece":
            metric.update(confidence, hits)
        elif name == "accuracy_top5":
            metric.update(torch.where((best == labels[:, None]).any(dim=1), labels, best[:, 0]), labels)
        elif name in ("accuracy", "macro_f1") or isinstance(metric, Counted):
            metric.update(predicted, labels)
        else:
            metric.update(probabilities, labels)


def best_classes(probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of (N, C) probabilities the largest, (N,), its class, the first of several, (N,), and the best five, (N, 5).

    Of many classes only few are compared: the best are in the blocks of classes with the largest maxima.
    """
    classes = probabilities.shape[1]
    count, width = min(5, classes), math.isqrt(classes)
    if classes < BLOCKWISE_CLASSES:
        return *probabilities.max(dim=1), probabilities.topk(count, dim=1).indices
    blocks = classes // width
    maxima = probabilities[:, : blocks * width].unflatten(1, (blocks, width)).amax(dim=2)
    places = torch.arange(classes, device=probabilities.device)
    after = places[blocks * width :].expand(len(maxima), -1)

    def members(chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The classes of the `chosen` blocks, (N, b), and those in no block, and their probabilities."""
        columns = torch.cat([(width * chosen[..., None] + places[:width]).flatten(1), after], dim=1)
        return columns, probabilities.gather(1, columns)

    columns, values = members(maxima.argmax(dim=1, keepdim=True))
    confidence, place = values.max(dim=1, keepdim=True)
    predicted = columns.gather(1, place)
    columns, values = members(maxima.topk(count, dim=1).indices)
    return confidence[:, 0], predicted[:, 0], columns.gather(1, values.topk(count, dim=1).indices)


def compute_metrics(metrics: MetricCollection) -> dict[str, Tensor]:
    """The value of each metric, a scalar. Raises UserError for a custom metric that returns more than one number."""
    values: dict[str, Tensor] = metrics.compute()
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"metrics.{name.rpartition('/')[2]} returns {shape}, but a metric must be one number. "
                "Many metrics of torchmetrics are with average=macro."
            )
    return values


@dataclass
class Outputs:
    """Outputs of the model for every image of a split, in the split's order, on the CPU."""

    index: Tensor
    """int64 (N,), positions in the split."""
    logits: Tensor
    """float32 (N, C)."""
    labels: Tensor
    """int64 (N,), or with several labels (N, C)."""
    loss: Tensor
    """float32 (N,), cross entropy without smoothing."""

    @classmethod
    def empty(cls, num_classes: int) -> Outputs:
        """The outputs for no image."""
        integers = torch.empty(0, dtype=torch.int64)
        return cls(integers, torch.empty(0, num_classes), integers.clone(), torch.empty(0))

    @property
    def confusion(self) -> Tensor:
        """Number of images, int64 (C, C): rows are true classes, columns predicted ones."""
        count = self.logits.shape[1]
        pairs = self.labels * count + self.logits.argmax(dim=1)
        return torch.bincount(pairs, minlength=count * count).reshape(count, count)

    @property
    def class_accuracy(self) -> Tensor:
        """Share of each class's images that is classified correctly, (C,); NaN for a class without any."""
        count = self.logits.shape[1]
        hits = self.labels[self.logits.argmax(dim=1) == self.labels]
        return torch.bincount(hits, minlength=count) / torch.bincount(self.labels, minlength=count)


class Collector:
    """Collects the outputs of batches until the split is complete, the logits in a temporary file.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes, self.count = num_classes, 0
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._logits = tempfile.TemporaryFile()  # noqa: SIM115 - is gone with the collector

    def add(
        self, index: Tensor | None, logits: Tensor, labels: Tensor, losses: Tensor, rank: int = 0, world_size: int = 1
    ) -> None:
        """Add a batch; without an index, process r is assumed to have the images r, r + world_size, and so on."""
        if index is None:
            index = rank + world_size * torch.arange(self.count, self.count + len(labels), device=labels.device)
        self.count += len(labels)
        self._batches.append((index, labels, losses))
        self._logits.write(logits.contiguous().cpu().numpy().data)

    def gather(self, device: torch.device, world_size: int = 1) -> Outputs:
        """All outputs of all processes, in the order of their index."""
        empty = Outputs.empty(self.num_classes)
        start = tuple(part.to(device) for part in (empty.index, empty.labels, empty.loss))
        columns = [torch.cat(column) for column in zip(start, *self._batches, strict=True)]
        logits = self._read()
        if world_size > 1:
            columns = [torch.cat(gather_all_tensors(column)) for column in columns]
            logits = torch.cat(gather_all_tensors(logits.to(device))).cpu()
        index, labels, losses = (column.cpu() for column in columns)
        order = index.argsort()
        if not torch.equal(order, torch.arange(len(order))):  # where they are in order, they stay in the file
            logits = logits[order]
        return Outputs(index[order], logits, labels[order], losses[order])

    def _read(self) -> Tensor:
        """The logits of this process, float32 (N, C), mapped from the file."""
        shape = (self.count, self.num_classes)
        if 0 in shape:
            return torch.empty(shape)
        self._logits.flush()
        return torch.from_numpy(np.memmap(self._logits, np.float32, "c", shape=shape))
