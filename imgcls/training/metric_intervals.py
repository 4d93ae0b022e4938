"""The 95 % intervals of all metrics of a split."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torchmetrics import Metric, MetricCollection

from imgcls.models.classifier import Classifier
from imgcls.models.metrics import Outputs, update_metrics
from imgcls.models.multilabel import update_label_metrics
from imgcls.models.named_metrics import Counted, Ranked
from imgcls.report.intervals import Interval, intervals, jackknife, wilson

log = logging.getLogger(__name__)

MAX_VALUES = 20_000_000  # logits of which a metric is computed twenty times more
AT_ONCE = 1024  # images


def metric_intervals(
    classifier: Classifier, outputs: Outputs, groups: Sequence[str] | None = None
) -> dict[str, Interval]:
    """The interval of each metric of `outputs`, by its name without the split; none for one that fails.

    Metrics that imgcls computes itself are bootstrapped or have a closed form, the others a jackknife; where the images
    are in `groups`, by the index of the outputs, all have a jackknife that leaves out whole groups.
    """
    if groups is not None:
        groups = [groups[place] for place in outputs.index.tolist()]
    logits, labels = outputs.logits.float().numpy(), outputs.labels.numpy()
    metrics = dict(classifier.test_metrics.items(keep_base=True))
    found: dict[str, Interval] = {}
    if classifier.multilabel:
        metrics.pop("loss")
        hits = ((torch.sigmoid(outputs.logits) >= classifier.thresholds.cpu()) == (outputs.labels > 0.5)).all(dim=1)
        if groups is None:
            found["subset_accuracy"] = wilson(float(hits.sum()), max(1, len(hits)))
    else:
        own = {name: metric.full_name for name, metric in metrics.items() if isinstance(metric, Counted | Ranked)}
        named = intervals(logits, labels, named=list(dict.fromkeys(own.values())), groups=groups)
        ranked = [name for name in own if isinstance(metrics[name], Ranked)] if groups is not None else []
        known = {*named, *own, *KNOWN} - {*ranked}
        metrics = {name: metric for name, metric in metrics.items() if name not in known}
        found |= {name: interval for name, interval in named.items() if name in KNOWN}
        found |= {name: named[full] for name, full in own.items() if full in named}
    if outputs.logits.numel() > MAX_VALUES:
        return found
    for name, metric in metrics.items():
        if name in found:
            continue
        try:
            values = _Subset(classifier, outputs, name, metric)
            interval = jackknife(values.measure, values.measure(np.arange(len(labels))), labels, groups=groups)
        except Exception as error:  # of the user's own metric, which has been measured without one
            log.info("There is no interval of %s. %s: %s", name, type(error).__name__, error)
            continue
        found |= {name: interval} if interval is not None else {}
    return found


KNOWN = ("loss", "accuracy", "accuracy_top5", "macro_f1", "ece")


class _Subset:
    """A metric of some of the images."""

    def __init__(self, classifier: Classifier, outputs: Outputs, name: str, metric: Metric) -> None:
        self.outputs, self.thresholds = outputs, classifier.thresholds.cpu() if classifier.multilabel else None
        metric = metric.clone().cpu()
        metric.reset()
        self.metric = MetricCollection({name: metric}, compute_groups=False)

    def measure(self, positions: np.ndarray) -> float:
        """The metric of the images at `positions`, int (K,)."""
        self.metric.reset()
        for part in torch.from_numpy(positions).split(AT_ONCE):
            batch = self.outputs.logits[part], self.outputs.labels[part], self.outputs.loss[part]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.thresholds is None:
                    update_metrics(self.metric, *batch)
                else:
                    update_label_metrics(self.metric, *batch, self.thresholds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            [value] = self.metric.compute().values()
        return float(value)
