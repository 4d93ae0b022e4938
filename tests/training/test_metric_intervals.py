"""Metrics that a run is asked for, with their intervals."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

import imgcls
from imgcls.config import plain
from imgcls.errors import UserError
from imgcls.evaluate import evaluate
from imgcls.models.classifier import Classifier
from imgcls.models.metrics import Outputs
from imgcls.models.named_metrics import named_metric
from imgcls.report.intervals import wilson
from imgcls.sweeps.options import search_options
from imgcls.training.metric_intervals import metric_intervals
from tests.models.helpers import network
from tests.trainings import Fit

NAMES = ("auroc", "weighted_f1", "matthews", "hinge_loss")


def test_a_run_measures_the_named_metrics_and_chooses_by_them(fit: Fit) -> None:
    run = fit(f"metrics=[{','.join(NAMES)}]", "checkpoint.monitor=val/auroc")
    stored = json.loads((run.folder / "metrics.json").read_text())
    for name in NAMES:
        for split in ("val", "test"):
            if (split, name) == ("val", "hinge_loss"):  # of which 7 images are too few for a jackknife
                assert f"{split}/{name}_low" not in stored
                continue
            low, value, high = (stored[f"{split}/{name}{end}"] for end in ("_low", "", "_high"))
            assert low - 1e-6 <= value <= high + 1e-6, (split, name)
            assert low < high
    assert stored["best_epoch"] == max(run.history, key=lambda row: (row["val/auroc"], row["epoch"]))["epoch"]
    measured = evaluate(run)  # names are no classes of others: nothing to trust
    assert measured["auroc"] == pytest.approx(stored["test/auroc"], abs=1e-5)
    logits, labels = (np.load(run.folder / f"test_{name}.npy") for name in ("logits", "labels"))
    metric = named_metric("auroc", logits.shape[1])
    metric.update(torch.tensor(logits).softmax(dim=1), torch.tensor(labels))
    assert stored["test/auroc"] == pytest.approx(float(metric.compute()), abs=1e-5)
    with (run.folder / "per_class.csv").open() as text:
        rows = list(csv.DictReader(text))
    predicted = logits.argmax(axis=1)
    for place, row in enumerate(rows):
        hits = ((predicted == place) & (labels == place)).sum()
        assert float(row["recall"]) == float(row["accuracy"]) == pytest.approx(hits / (labels == place).sum(), abs=1e-6)
        assert row["precision"] == "" or float(row["precision"]) == pytest.approx(
            hits / (predicted == place).sum(), abs=1e-6
        )
        assert 0 < float(row["average_precision"]) <= 1


def test_several_labels_have_intervals_too() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 3)) < 0.4).astype(np.int64)
    logits = torch.tensor(rng.normal(size=(200, 3)) + 2 * labels - 1, dtype=torch.float32)
    classifier = Classifier(
        network(num_classes=3), multilabel=True, metrics={"recall": named_metric("recall", 3, multilabel=True)}
    )
    outputs = Outputs(torch.arange(200), logits, torch.tensor(labels), torch.rand(200))
    found = metric_intervals(classifier, outputs)
    assert found.keys() == {"map", "macro_f1", "micro_f1", "subset_accuracy", "ece", "recall"}
    answers = (logits.numpy() > 0) == (labels > 0)
    assert found["subset_accuracy"] == wilson(answers.all(axis=1).sum(), 200)
    recall = ((logits.numpy() > 0) & (labels > 0)).sum(axis=0) / labels.sum(axis=0)
    assert found["recall"][0] < recall.mean() < found["recall"][1]
    assert found["recall"][1] - found["recall"][0] == pytest.approx(4 * np.sqrt(0.84 * 0.16 / labels.sum()), rel=0.5)


def test_all_metrics_leave_out_whole_groups() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    hard = rng.random(40) < 0.5
    logits = rng.normal(size=(400, 3)) + np.where(hard, 0, 4)[np.arange(400) // 10, None] * np.eye(3)[labels]
    classifier = Classifier(
        network(num_classes=3), metrics={name: named_metric(name, 3) for name in ("auroc", "recall")}
    )
    order = rng.permutation(400)  # of the outputs, of several processes
    outputs = Outputs(
        torch.tensor(order), torch.tensor(logits[order]).float(), torch.tensor(labels[order]), torch.rand(400)
    )
    images, patients = (
        metric_intervals(classifier, outputs),
        metric_intervals(classifier, outputs, [str(number // 10) for number in range(400)]),
    )
    assert images.keys() == patients.keys() >= {"accuracy", "loss", "ece", "auroc", "recall"}
    for name in ("accuracy", "auroc", "recall"):
        widths = [found[name][1] - found[name][0] for found in (images, patients)]
        assert 1.5 * widths[0] < widths[1] < 5 * widths[0], name


def test_unknown_names_are_refused_before_anything_is_loaded() -> None:
    for override, message in {
        "metrics=[aurok]": "'aurok' is not known. Did you mean auroc",
        "metrics=auroc": "must be a list of names",
        "metrics=[3]": "3 is no name",
        "metrics={mine: fbeta_score}": "'fbeta_score' is not known",
    }.items():
        with pytest.raises(UserError) as error:
            imgcls.compose([override])
        assert message in str(error.value)
    with pytest.raises(UserError, match=r"checkpoint.monitor=val/auroc"):
        imgcls.compose(["checkpoint.monitor=val/auroc"])


def test_a_search_compares_trials_by_them() -> None:
    search = plain(imgcls.compose(["metrics=[auroc,hinge_loss]", "search.objective=val/hinge_loss"]))["search"]
    assert search_options(search, 0, ["auroc", "hinge_loss"]).objectives == {"val/hinge_loss": "min"}
    with pytest.raises(UserError, match=r"search.objective=val/hinge_loss"):
        search_options(search, 0)
