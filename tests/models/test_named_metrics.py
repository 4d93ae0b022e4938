"""Named metrics are those of torchmetrics, with memory that does not grow with the square of the classes."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch
from torchmetrics import Metric, classification
from torchmetrics.functional.classification import multilabel_auroc

from imgcls.errors import UserError
from imgcls.models.choices import ALIASES, AVERAGES_OF_CLASSES, LOWER_IS_BETTER, metric_names, split_metric
from imgcls.models.metrics import evaluation_metrics, update_metrics
from imgcls.models.multilabel import label_metrics, update_label_metrics
from imgcls.models.named_metrics import named_metric
from imgcls.models.ranking import areas
from tests.models.test_metrics import CLASSES, LargestTensor, batches

WITH_ARGUMENTS = ("fbeta_score", "exact_match")
"""Those that need a beta, or more dimensions than classes."""


def reference(name: str, *, multilabel: bool) -> Metric:
    """torchmetrics' own."""
    plain, average = split_metric(name)
    if plain == "balanced_accuracy":
        plain = "recall"
    kind, count = ("Multilabel", "num_labels") if multilabel else ("Multiclass", "num_classes")
    found = {name.lower(): getattr(classification, name) for name in dir(classification)}
    made = found[(kind + plain.replace("_", "")).lower()]
    options = {"average": average} if "average" in inspect.signature(made).parameters else {}
    metric: Metric = made(**{count: CLASSES}, **options)
    return metric


@pytest.mark.filterwarnings("ignore:.*samples in")
@pytest.mark.parametrize("name", metric_names(multilabel=False))
def test_a_metric_of_classes_is_that_of_torchmetrics(name: str) -> None:
    metrics = evaluation_metrics(CLASSES, "", {"mine": named_metric(name, CLASSES)})
    expected = reference(name, multilabel=False)
    absent = split_metric(name)[0] in ("auroc", "balanced_accuracy", "eer", "logauc")  # which torchmetrics counts as 0
    for logits, labels in batches():
        labels = labels if not absent else torch.where(labels < 2, labels + CLASSES - 2, labels)
        labels = torch.arange(len(labels)) % CLASSES if absent else labels
        update_metrics(metrics, logits, labels, torch.ones(len(labels)))
        expected.update(logits.softmax(dim=1), labels)
    assert float(metrics.compute()["mine"]) == pytest.approx(float(expected.compute()), abs=2e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", metric_names(multilabel=True))
def test_a_metric_of_labels_is_that_of_torchmetrics(name: str) -> None:
    metrics = label_metrics(CLASSES, "", {"mine": named_metric(name, CLASSES, multilabel=True)})
    expected = reference(name, multilabel=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        labels = (torch.rand(40, CLASSES, generator=generator) < 0.3).long()
        logits = torch.randn(40, CLASSES, generator=generator) + 1.5 * labels
        update_label_metrics(metrics, logits, labels, torch.ones(40), torch.full((CLASSES,), 0.5))
        expected.update(torch.sigmoid(logits), labels)
    assert float(metrics.compute()["mine"]) == pytest.approx(float(expected.compute()), abs=2e-6)


@pytest.mark.parametrize(("kind", "multilabel"), [("Multiclass", False), ("Multilabel", True)])
def test_every_metric_of_torchmetrics_that_is_one_number_has_a_name(kind: str, multilabel: bool) -> None:
    names = {split_metric(name)[0].replace("_", "") for name in metric_names(multilabel=multilabel)}
    left_out = {name.replace("_", "") for name in WITH_ARGUMENTS}
    for name in dir(classification):
        plain = name.removeprefix(kind).lower()
        if not name.startswith(kind) or plain in left_out or plain in names:
            continue
        made = getattr(classification, name)
        needs = [p.name for p in inspect.signature(made).parameters.values() if p.default is p.empty]
        several = ("eer", "confusionmatrix", "precisionrecallcurve", "roc", "statscores")
        assert plain in several or set(needs) - {"num_classes", "num_labels", "kwargs", "args"}, name


def test_an_unknown_name_has_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'aurok' is not known\. Did you mean auroc"):
        named_metric("aurok", 3)
    with pytest.raises(UserError, match="'cohen_kappa' is not known"):
        named_metric("cohen_kappa", 3, multilabel=True)
    assert set(ALIASES.values()) <= set(metric_names(multilabel=False))
    assert {split_metric(f"{average}_f1") for average in AVERAGES_OF_CLASSES} == {
        ("f1_score", average) for average in AVERAGES_OF_CLASSES
    }
    assert not set(LOWER_IS_BETTER) - set(metric_names(multilabel=False)) - set(metric_names(multilabel=True))


@pytest.mark.parametrize("name", ["cohen_kappa", "matthews", "jaccard", "specificity", "auroc", "average_precision"])
def test_ten_thousand_classes_need_no_matrix_of_classes(name: str) -> None:
    classes = 10_000
    ((logits, labels),) = batches(1, 64, classes)
    metrics = evaluation_metrics(classes, "", {"mine": named_metric(name, classes)})

    with LargestTensor() as made:
        update_metrics(metrics, logits, labels, torch.ones(64))
    states = sum(part.nbytes for part in metrics["mine"].metric_state.values() if isinstance(part, torch.Tensor))
    assert made.nbytes <= logits.nbytes
    assert states <= 3 * 8 * classes + 64
    assert 0 < float(metrics["mine"].compute()) <= 1


def test_equal_scores_and_influences_are_exact() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.random((60, 3)), 1)
    true = rng.random((60, 3)) < 0.3 + 0.4 * scores
    found = areas(scores, true)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = multilabel_auroc(torch.tensor(scores), torch.tensor(true).long(), 3, average="none")
    np.testing.assert_allclose(found.auroc, expected, rtol=1e-6)
    for name in ("auroc", "average_precision"):  # the derivative by the weight of an image: repeat all, one once more
        repeats = 2000
        for image in (0, 7, 33):
            more = [
                np.concatenate([np.repeat(part, repeats, axis=0), part[image : image + 1]]) for part in (scores, true)
            ]
            moved = (getattr(areas(*more), name) - getattr(found, name)) * repeats
            np.testing.assert_allclose(moved, getattr(found, f"{name}_influence")[image], atol=2e-4)
