"""What a classifier is measured by: means over pictures, exact for any batch size and number of processes."""

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

    The loss is fed with the losses of pictures, a NaN among them included; the others with probabilities and labels.
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


def update(metrics: MetricCollection, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
    """Take in a batch: float32 (N, C), int64 (N,), float32 (N,); of none, where a process has no picture."""
    if not len(labels):  # torchmetrics cannot take one in, and counts a process that took in nothing
        return
    # Probabilities, because torchmetrics takes scores that happen to lie in 0..1 for such.
    probabilities = logits.softmax(dim=1)
    for name, metric in metrics.items(keep_base=True):
        if name == "loss":
            metric.update(losses)
        else:
            metric.update(probabilities, labels)


@dataclass
class Outputs:
    """What the model said of every picture of a split, in its order, on the CPU."""

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
        """Those of no picture."""
        whole = torch.empty(0, dtype=torch.int64)
        return cls(whole, torch.empty(0, num_classes), whole.clone(), torch.empty(0))

    @property
    def confusion(self) -> Tensor:
        """int64 (C, C): how many pictures of a class (row) were taken for which (column)."""
        count = self.logits.shape[1]
        pairs = self.labels * count + self.logits.argmax(dim=1)
        return torch.bincount(pairs, minlength=count * count).reshape(count, count)


@dataclass
class Collector:
    """Keeps the outputs of batches on their device until all are there."""

    num_classes: int
    batches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    seen: int = 0

    def add(
        self, index: Tensor | None, logits: Tensor, labels: Tensor, losses: Tensor, rank: int = 0, world_size: int = 1
    ) -> None:
        """Take in a batch; without an index, process r is taken to see the pictures r, r + world size, and so on."""
        if index is None:
            positions = torch.arange(self.seen, self.seen + len(labels), device=labels.device)
            index = rank + world_size * positions
        self.seen += len(labels)
        self.batches.append((index, logits, labels, losses))

    def gather(self, device: torch.device, world_size: int = 1) -> Outputs:
        """All outputs of all processes, in the order of their index; forgets them."""
        nothing = Outputs.empty(self.num_classes)
        start = tuple(part.to(device) for part in (nothing.index, nothing.logits, nothing.labels, nothing.loss))
        columns = [torch.cat(column) for column in zip(start, *self.batches, strict=True)]
        if world_size > 1:
            columns = [torch.cat(gather_all_tensors(column)) for column in columns]
        index, logits, labels, losses = (column.cpu() for column in columns)
        order = index.argsort()
        self.batches, self.seen = [], 0
        return Outputs(index[order], logits[order], labels[order], losses[order])
