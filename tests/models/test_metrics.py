"""The metrics of an evaluation are those of torchmetrics to the bit, and cost little with many classes."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from imgcls.models.metrics import CALIBRATION_BINS, Collector, best_classes, evaluation_metrics, update_metrics

CLASSES = 23


def batches(count: int = 3, size: int = 29, classes: int = CLASSES) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        labels = torch.randint(0, classes - 2, (size,), generator=generator)  # the last classes have no image
        logits = torch.randn(size, classes, generator=generator) + 2 * torch.nn.functional.one_hot(labels, classes)
        made.append((logits, labels))
    return made


def test_all_values_are_those_of_torchmetrics_to_the_bit() -> None:
    reference = {
        "accuracy": MulticlassAccuracy(CLASSES, average="micro"),
        "accuracy_top5": MulticlassAccuracy(CLASSES, average="micro", top_k=5),
        "macro_f1": MulticlassF1Score(CLASSES, average="macro"),
        "ece": MulticlassCalibrationError(CLASSES, n_bins=CALIBRATION_BINS),
    }
    metrics = evaluation_metrics(CLASSES, "")
    for logits, labels in batches():
        update_metrics(metrics, logits, labels, torch.ones(len(labels)))
        for metric in reference.values():
            metric.update(logits.softmax(dim=1), labels)
    values = metrics.compute()
    assert 0.3 < float(values["macro_f1"]) < 0.9
    for name, metric in reference.items():
        assert torch.equal(values[name], metric.compute()), name
    assert torch.equal(metrics["macro_f1"].tp, reference["macro_f1"].tp)
    assert torch.equal(metrics["macro_f1"].fn, reference["macro_f1"].fn)


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Watches what is computed inside it: the size of the largest tensor."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, torch.Tensor):
                self.nbytes = max(self.nbytes, part.nbytes)
        return result


@pytest.mark.parametrize("deterministic", [False, True])
def test_ten_thousand_classes_need_no_matrix_of_classes(deterministic: bool) -> None:
    """With deterministic algorithms torchmetrics would build a mesh of N · C² integers, 51 GB here."""
    classes = 10_000
    ((logits, labels),) = batches(1, 64, classes)
    metrics = evaluation_metrics(classes, "")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        with LargestTensor() as made:
            update_metrics(metrics, logits, labels, torch.ones(64))
    finally:
        torch.use_deterministic_algorithms(False)
    assert made.nbytes == logits.nbytes, "the probabilities are the largest array"
    assert metrics["macro_f1"].tp.sum() + metrics["macro_f1"].fn.sum() == 64


@pytest.mark.parametrize("levels", [1, 3, 1000, None])
def test_the_best_of_many_classes_are_the_first_of_the_largest(levels: int | None) -> None:
    for classes in (4096, 5003):
        values = torch.rand(32, classes)
        values[:, -1] += torch.arange(32) % 2  # the last one is in no block
        if levels is not None:
            values = (values * levels).floor()  # with ties
        confidence, predicted, best = best_classes(values)
        assert torch.equal(confidence, values.amax(dim=1))
        assert torch.equal(predicted, values.argmax(dim=1))
        assert torch.equal(values.gather(1, best), values.topk(5, dim=1).values)
        assert all(len(set(row)) == 5 for row in best.tolist())


@pytest.mark.parametrize("shuffled", [False, True])
def test_collected_outputs_are_in_the_order_of_their_index(shuffled: bool) -> None:
    collector, parts = Collector(CLASSES), batches()
    order = torch.randperm(87, generator=torch.Generator().manual_seed(1)) if shuffled else torch.arange(87)
    for index, (logits, labels) in zip(order.split(29), parts, strict=True):
        collector.add(index, logits, labels, labels.float())
    outputs = collector.gather(torch.device("cpu"))
    logits, labels = (torch.cat(column)[order.argsort()] for column in zip(*parts, strict=True))
    assert torch.equal(outputs.index, torch.arange(87))
    assert torch.equal(outputs.logits, logits)
    assert torch.equal(outputs.labels, labels)
    assert torch.equal(outputs.loss, labels.float())
    hits = torch.bincount(labels[logits.argmax(1) == labels], minlength=CLASSES)
    expected = hits / torch.bincount(labels, minlength=CLASSES)
    assert torch.equal(outputs.class_accuracy.nan_to_num(-1), expected.nan_to_num(-1))


def test_no_image_has_no_outputs() -> None:
    assert Collector(CLASSES).gather(torch.device("cpu")).logits.shape == (0, CLASSES)
