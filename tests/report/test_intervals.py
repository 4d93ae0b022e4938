"""Intervals of simulated logits hold the true value about as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imgcls.models.named_metrics import Counted, named_metric
from imgcls.portable.calibration import expected_error, judge
from imgcls.report.intervals import Difference, as_metrics, difference, intervals, is_bound, jackknife, wilson


def simulate(rng: np.random.Generator, count: int, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of `count` images from one distribution."""
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), labels] += 1.5
    return logits, labels


def test_the_intervals_hold_the_true_value_in_95_of_100_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.report.intervals.REPLICATES", 200)
    rng, repeats = np.random.default_rng(0), 300
    logits, labels = simulate(rng, 200_000)
    shifted = logits - logits.max(axis=1, keepdims=True)
    truth = {
        "accuracy": (logits.argmax(axis=1) == labels).mean(),
        "loss": (np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]).mean(),
    }
    held = dict.fromkeys(truth, 0)
    for repeat in range(repeats):
        found = intervals(*simulate(rng, 300), seed=repeat)
        for name, value in truth.items():
            low, high = found[name]
            held[name] += low <= value <= high
    for name, count in held.items():
        assert 0.925 <= count / repeats <= 0.975, name


@pytest.mark.parametrize(("scale", "grouped"), [(1.5, False), (2.5, False), (2.5, True)])
def test_the_calibration_error_of_few_images_has_an_interval_that_holds(
    scale: float, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrated logits and overconfident ones; a bootstrap held the true error in 75 of 100 cases."""
    monkeypatch.setattr("imgcls.report.intervals.REPLICATES", 200)
    rng, repeats = np.random.default_rng(0), 200

    def draw(count: int) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
        logits, labels, groups = simulate_groups(rng, count // 9) if grouped else (*simulate(rng, count), None)
        return scale * logits, labels, groups

    logits, labels, _ = draw(300_000)
    judged = judge(logits, labels)
    truth, held = expected_error(judged.confidence, judged.correct), 0
    for repeat in range(repeats):
        logits, labels, groups = draw(360)
        low, high = intervals(logits, labels, repeat, groups=groups)["ece"]
        held += low <= truth <= high
    assert 0.9 <= held / repeats <= 0.99


def test_every_metric_has_an_interval_around_its_value() -> None:
    found = intervals(*simulate(np.random.default_rng(0), 500))
    assert found.keys() == {"loss", "accuracy", "accuracy_top5", "macro_f1", "ece"}
    assert all(0 <= low < high for low, high in found.values())
    metrics = {"test/accuracy": 0.5, **as_metrics(found, "test")}
    assert metrics["test/accuracy_low"] < metrics["test/accuracy_high"]
    assert [name for name in metrics if is_bound(name, metrics)] == ["test/accuracy_low", "test/accuracy_high"]


def test_images_that_are_all_right_prove_nothing_about_others() -> None:
    labels = np.arange(30) % 3
    low, high = intervals(9.0 * np.eye(3)[labels], labels)["accuracy"]
    assert (low, high) == wilson(30, 30)
    assert low == pytest.approx(0.8865, abs=1e-3)


def test_a_diverged_network_has_no_intervals() -> None:
    assert intervals(np.full((4, 2), np.nan), np.zeros(4, dtype=int)) == {}


def test_a_difference_is_real_only_where_chance_would_not_make_it() -> None:
    assert Difference(100, 5, 5, 20).p_value == 1
    assert Difference(100, 0, 6, 6).p_value == pytest.approx(2 / 2**6)
    low, high = Difference(1000, 10, 40, 60).interval
    assert 0 < low < 0.03 < high
    assert "the difference is real" in Difference(1000, 10, 40, 60).sentence("a", "b")
    assert "b is +3.00 points from a" in Difference(1000, 10, 40, 60).sentence("a", "b")
    one = Difference(225, 4, 1, 5).sentence("a", "b")
    assert "of 225 images, b alone classifies 1 correctly, a alone 4, and the predictions of 5 differ" in one
    assert "may be chance" in Difference(225, 11, 15, 30).sentence("a", "b")
    low, high = Difference(50, 0, 0, 0).interval
    assert low < 0 < high


def test_equal_runs_differ_by_chance_in_one_of_twenty_comparisons_at_most() -> None:
    rng, real = np.random.default_rng(1), 0
    for _ in range(300):
        labels = rng.integers(0, 4, 200)
        first, second = (rng.normal(size=(200, 4)) + 1.5 * np.eye(4)[labels] for _ in range(2))
        real += difference(first, second, labels).p_value < 0.05
    assert real <= 300 * 0.07


@pytest.mark.parametrize("name", ["auroc", "average_precision", "cohen_kappa", "balanced_accuracy"])
def test_the_intervals_of_named_metrics_hold_the_true_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.report.intervals.REPLICATES", 200)
    rng, repeats = np.random.default_rng(1), 300

    def measure(logits: np.ndarray, labels: np.ndarray) -> float:
        metric = named_metric(name, logits.shape[1])
        probabilities = torch.tensor(logits, dtype=torch.float32).softmax(dim=1)
        metric.update(
            probabilities.argmax(dim=1) if isinstance(metric, Counted) else probabilities, torch.tensor(labels)
        )
        return float(metric.compute())

    truth = measure(*simulate(rng, 100_000))
    held = 0
    for repeat in range(repeats):
        low, high = intervals(*simulate(rng, 300), seed=repeat, named=[name])[name]
        held += low <= truth <= high
    assert 0.925 <= held / repeats <= 0.98


def simulate_groups(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images of `count` patients, some of whom are hard to tell."""
    patient = np.repeat(np.arange(count), rng.poisson(8, count) + 1)
    labels = rng.integers(0, 6, len(patient))
    logits = rng.normal(size=(len(patient), 6))
    logits[np.arange(len(patient)), labels] += 1.5 + rng.normal(size=count)[patient]
    return logits, labels, [f"patient {number}" for number in patient]


def test_images_of_a_patient_count_as_one_patient() -> None:
    rng, repeats = np.random.default_rng(0), 300
    logits, labels, _ = simulate_groups(rng, 20_000)
    right = logits.argmax(axis=1) == labels
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    truth = {"accuracy": right.mean(), "loss": losses.mean(), "recall": right.mean(), "macro_f1": right.mean()}
    held, naive = dict.fromkeys(truth, 0), 0
    for repeat in range(repeats):
        logits, labels, groups = simulate_groups(rng, 40)
        found = intervals(logits, labels, repeat, ["recall"], groups)
        for name, value in truth.items():
            held[name] += found[name][0] <= value <= found[name][1]
        hits = logits.argmax(axis=1) == labels
        low, high = wilson(hits.sum(), len(hits))
        naive += low <= truth["accuracy"] <= high
    for name, count in held.items():
        assert 0.93 <= count / repeats <= 0.97, name
    assert naive / repeats < 0.8


def test_few_groups_and_groups_that_are_all_right() -> None:
    labels = np.arange(40) % 4
    logits = 9.0 * np.eye(4)[labels]
    groups = [str(number // 5) for number in range(40)]
    assert intervals(logits, labels, groups=groups)["accuracy"] == wilson(8, 8)
    assert intervals(logits, labels, groups=[str(number % 4) for number in range(40)]) == {}


def test_a_perfect_order_does_not_prove_itself() -> None:
    labels = np.arange(30) % 3
    found = intervals(9.0 * np.eye(3)[labels], labels, named=["auroc", "macro_f1_score"])
    assert found["auroc"] == found["macro_f1_score"] == found["macro_f1"] == wilson(30, 30)


def test_the_jackknife_holds_the_true_value_of_any_metric() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        values = rng.exponential(size=200)
        interval = jackknife(
            lambda places, values=values: float(values[places].mean()), values.mean(), np.zeros(200, int)
        )
        assert interval is not None
        held += interval[0] <= 1 <= interval[1]
    assert 0.92 <= held / 300 <= 0.98
    assert jackknife(lambda places: 0.0, 0.0, np.zeros(5, int)) is None
