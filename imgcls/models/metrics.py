"""Evaluation metrics: means over images, exact for any batch size and number of processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score
from torchmetrics.utilities.distributed import gather_all_tensors

CALIBRATION_BINS = 15


def evaluation_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Loss, accuracy, top-5 accuracy (more than five classes), macro F1 and expected calibration error.

    The loss is updated with the losses of images, NaN included; the others with probabilities and labels.
    """
    metrics: dict[str, Any] = {
        "loss": MeanMetric(nan_strategy="disable"),  # the default would drop the NaNs of a training that diverged
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "macro_f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
        "ece": MulticlassCalibrationError(num_classes, n_bins=CALIBRATION_BINS, validate_args=False),
    }
    if num_classes > 5:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5, validate_args=False)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def update_metrics(metrics: MetricCollection, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
    """Add a batch of float32 (N, C), int64 (N,) and float32 (N,); N is 0 in a process that has no images."""
    if not len(labels):  # torchmetrics cannot add an empty batch, and allows a process that added none
        return
    # Probabilities, because torchmetrics mistakes logits that happen to be in 0..1 for them.
    probabilities = logits.softmax(dim=1)
    for name, metric in metrics.items(keep_base=True):
        if name == "loss":
            metric.update(losses)
        else:
            metric.update(probabilities, labels)


@dataclass
class Outputs:
    """Outputs of the model for every image of a split, in the split's order, on the CPU."""

    index: Tensor
    """int64 (N,), positions in the split."""
    logits: Tensor
    """float32 (N, C)."""
    labels: Tensor
    """int64 (N,)."""
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


@dataclass
class Collector:
    """Keeps the outputs of batches on their device until the split is complete."""

    num_classes: int
    batches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    count: int = 0

    def add(
        self, index: Tensor | None, logits: Tensor, labels: Tensor, losses: Tensor, rank: int = 0, world_size: int = 1
    ) -> None:
        """Add a batch; without an index, process r is assumed to have the images r, r + world_size, and so on."""
        if index is None:
            index = rank + world_size * torch.arange(self.count, self.count + len(labels), device=labels.device)
        self.count += len(labels)
        self.batches.append((index, logits, labels, losses))

    def gather(self, device: torch.device, world_size: int = 1) -> Outputs:
        """All outputs of all processes, in the order of their index; empties the collector."""
        empty = Outputs.empty(self.num_classes)
        start = tuple(part.to(device) for part in (empty.index, empty.logits, empty.labels, empty.loss))
        columns = [torch.cat(column) for column in zip(start, *self.batches, strict=True)]
        if world_size > 1:
            columns = [torch.cat(gather_all_tensors(column)) for column in columns]
        index, logits, labels, losses = (column.cpu() for column in columns)
        order = index.argsort()
        self.batches, self.count = [], 0
        return Outputs(index[order], logits[order], labels[order], losses[order])
