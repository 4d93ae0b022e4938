"""Metrics of `torchmetrics.classification` by name, which cost O(N · C) time and O(C) memory per batch.

Those of counts and of curves have their own updates, because torchmetrics holds a C² confusion matrix of the first and
all scores of the second; `scores.py` and `ranking.py` compute them. The others are torchmetrics' own classes.
"""

from __future__ import annotations

import inspect
import tempfile
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, classification
from torchmetrics.utilities.distributed import gather_all_tensors

from imgcls.errors import UserError, nearest
from imgcls.models.choices import COUNTED, COUNTED_OVERALL, RANKED, metric_names, split_metric
from imgcls.models.ranking import areas, in_parts
from imgcls.models.scores import Counts, score


def named_metric(name: str, num_classes: int, *, multilabel: bool = False) -> Metric:
    """The metric `name`, updated with probabilities and labels; a `Counted` with predictions and labels.

    Raises UserError for a name that is not one of `metric_names`.
    """
    valid = metric_names(multilabel=multilabel)
    if name not in valid:
        raise UserError(f"metrics: {name!r} is not known. {nearest(name, valid)}")
    plain, average = split_metric(name)
    if plain in (*COUNTED, *COUNTED_OVERALL):
        return Counted(plain, average, num_classes, multilabel=multilabel)
    if plain in RANKED:
        return Ranked(plain, average, num_classes, multilabel=multilabel)
    kind, options = ("Multilabel", "num_labels") if multilabel else ("Multiclass", "num_classes")
    classes = {found.lower(): found for found in dir(classification)}
    made: type[Metric] = getattr(classification, classes[(kind + plain.replace("_", "")).lower()])
    averaged = {"average": average} if "average" in inspect.signature(made).parameters else {}
    return made(**{options: num_classes}, **averaged, validate_args=False)


class Counted(Metric):
    """A metric of `scores.py`, whose state is three counts per class.

    Args:
        name, average: see `score`.
        num_classes: C.
        multilabel: whether an image has any number of labels.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    images: Tensor
    full_state_update = False

    def __init__(self, name: str, average: str, num_classes: int, *, multilabel: bool = False) -> None:
        super().__init__()
        self.name, self.average, self.multilabel = name, average, multilabel
        for state in ("tp", "fp", "fn"):
            self.add_state(state, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the predicted and the true classes of a batch, int64 (N,), or labels, 0 or 1, (N, C)."""
        self.images += len(target)
        if self.multilabel:
            self.tp += (preds * target).sum(dim=0)
            self.fp += (preds * (1 - target)).sum(dim=0)
            self.fn += ((1 - preds) * target).sum(dim=0)
            return
        hits = (preds == target).long()
        misses = 1 - hits
        # index_add is exact on integers and, unlike bincount, does not wait for a GPU
        self.tp = self.tp.index_add(0, target, hits)
        self.fp = self.fp.index_add(0, preds, misses)
        self.fn = self.fn.index_add(0, target, misses)

    @property
    def full_name(self) -> str:
        """The name that chooses it."""
        return self.name if self.name in COUNTED_OVERALL else f"{self.average}_{self.name}"

    def compute(self) -> Tensor:
        """The metric, a scalar."""
        tp, fp, fn = (part.cpu().numpy().astype(np.float64) for part in (self.tp, self.fp, self.fn))
        value = score(self.name, self.average, Counts(tp, fp, fn, float(self.images), self.multilabel))
        return torch.tensor(float(value), device=self.device)


class Ranked(Metric):
    """A metric of `ranking.py`: exact, and so of all probabilities, which wait in a temporary file.

    Args:
        name: auroc or average_precision.
        average: macro, or weighted by the number of images, of the classes that have images and are not in all.
        num_classes: C.
        multilabel: whether an image has any number of labels.
    """

    full_state_update = False

    def __init__(self, name: str, average: str, num_classes: int, *, multilabel: bool = False) -> None:
        super().__init__(sync_on_compute=False)
        self.name, self.average, self.num_classes = name, average, num_classes
        self._no_labels = torch.empty((0, num_classes) if multilabel else (0,), dtype=torch.int64)
        self._labels: list[Tensor] = []
        self._file: IO[bytes] | None = None

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the probabilities of a batch, float32 (N, C), and labels, int64 (N,) or (N, C)."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - is gone with the epoch
        self._file.write(preds.float().contiguous().cpu().numpy().data)
        self._labels.append(target.long().cpu())

    @property
    def full_name(self) -> str:
        """The name that chooses it."""
        return f"{self.average}_{self.name}"

    def compute(self) -> Tensor:
        """The metric, a scalar; NaN without any class to measure."""
        labels = torch.cat([self._no_labels, *self._labels])
        probabilities = self._read(len(labels))
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()

        def gather(part: Tensor) -> Any:
            return (torch.cat(gather_all_tensors(part.to(self.device))).cpu() if distributed else part).numpy()

        all_labels, values, weights = gather(labels), [], []
        parts = in_parts(lambda part: gather(probabilities[:, part].contiguous()), all_labels, self.num_classes)
        for _, scores, true in parts:
            values.append(getattr(areas(scores, true), self.name))
            weights.append(true.sum(axis=0) if self.average == "weighted" else np.ones(true.shape[1]))
        value, weight = np.concatenate(values), np.concatenate(weights)
        known = np.isfinite(value)
        total = weight[known].sum()
        mean = (value * weight)[known].sum() / total if total else np.nan
        return torch.tensor(mean, dtype=torch.float32).to(self.device)

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._labels, file, self._file = [], self._file, None
        if file is not None:
            file.close()

    def _read(self, count: int) -> Tensor:
        if self._file is None:
            return torch.empty(0, self.num_classes)
        self._file.flush()
        return torch.from_numpy(np.memmap(self._file, np.float32, "c", shape=(count, self.num_classes)))
