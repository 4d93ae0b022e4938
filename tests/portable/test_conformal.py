"""Sets of classes of simulated images, whose right probabilities are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from imgcls.errors import UserError
from imgcls.portable.conformal import MAX_SCORES, ClassSets, fit_sets


def simulate(count: int, seed: int, classes: int = 20, sharpness: float = 1.7) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of an overconfident model, and labels drawn from the right ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * 2
    right, claimed = (np.exp(logits * by) for by in (1.0, sharpness))
    right, claimed = (powers / powers.sum(axis=1, keepdims=True) for powers in (right, claimed))
    labels = (right.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return claimed.astype(np.float32), labels


@pytest.mark.parametrize("coverage", [0.7, 0.9, 0.95, 0.99])
def test_sets_hold_the_true_class_as_often_as_requested_though_the_model_is_overconfident(coverage: float) -> None:
    sets = fit_sets(*simulate(4000, seed=1))
    probabilities, labels = simulate(20_000, seed=2)
    assert sets is not None
    assert len(sets.scores) == MAX_SCORES
    sizes = sets.sizes(probabilities, coverage)
    rank = (probabilities > probabilities[np.arange(len(labels)), labels][:, None]).sum(axis=1)
    assert (rank < sizes).mean() == pytest.approx(coverage, abs=0.01)
    claimed = (np.cumsum(-np.sort(-probabilities, axis=1), axis=1) < coverage).sum(axis=1) + 1
    assert (rank < claimed).mean() < coverage - 0.01, "its own probabilities would not do"


def test_over_small_calibrations_the_mean_coverage_is_as_requested() -> None:
    probabilities, labels = simulate(2000, seed=3)
    rank = (probabilities > probabilities[np.arange(len(labels)), labels][:, None]).sum(axis=1)
    coverages = []
    for seed in range(60):
        sets = fit_sets(*simulate(100, seed=100 + seed))
        assert sets is not None
        coverages.append((rank < sets.sizes(probabilities, 0.9)).mean())
    assert np.mean(coverages) == pytest.approx(0.9, abs=0.01)


def test_a_penalty_makes_the_sets_of_a_model_with_a_noisy_tail_smaller() -> None:
    rng = np.random.default_rng(0)
    tail = rng.uniform(0.05, 0.6, size=(4000, 1))  # noise: whatever it is, the true class is one of the first five
    probabilities = np.hstack(
        [(1 - tail) * [0.4, 0.25, 0.2, 0.1, 0.05], tail * rng.dirichlet(np.full(95, 5.0), size=4000)]
    )
    labels = rng.choice(5, size=4000, p=[0.4, 0.25, 0.2, 0.1, 0.05])
    half = slice(0, 2000), slice(2000, 4000)
    sets = fit_sets(probabilities[half[0]], labels[half[0]])
    assert sets is not None
    assert sets.penalty > 0
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    mass = np.where(probabilities > own, probabilities, 0).sum(axis=1)
    plain = ClassSets(0.0, 1, np.sort(mass[half[0]]), 2000)
    sizes, others = sets.sizes(probabilities[half[1]], 0.95), plain.sizes(probabilities[half[1]], 0.95)
    assert sizes.mean() < others.mean() - 0.2
    rank = (probabilities > own).sum(axis=1)[half[1]]
    assert (rank < sizes).mean() == pytest.approx(0.95, abs=0.015)


def test_too_few_images_give_all_classes_and_a_right_model_one() -> None:
    labels = np.arange(10) % 3
    sets = fit_sets(np.eye(3, dtype=np.float32)[labels], labels)
    assert sets is not None
    surely, unsurely = np.eye(3, dtype=np.float32)[:1], np.full((1, 3), 1 / 3, np.float32)
    assert sets.sizes(surely, 0.9).tolist() == [1]
    assert sets.sizes(unsurely, 0.95).tolist() == [3], "10 images cannot show 95 %"


def test_they_are_stored_as_json() -> None:
    probabilities, labels = simulate(300, seed=1)
    sets = fit_sets(probabilities, labels)
    assert sets is not None
    again = ClassSets.from_dict(json.loads(json.dumps(sets.as_dict())))
    assert (again.sizes(probabilities, 0.9) == sets.sizes(probabilities, 0.9)).all()
    with pytest.raises(ValueError, match="ascending"):
        ClassSets.from_dict({**sets.as_dict(), "scores": [0.5, 0.1]})


@pytest.mark.parametrize("value", [0, 1, 1.5, "much", None, float("nan")])
def test_a_coverage_is_between_0_and_1(value: object) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        ClassSets(0.0, 1, np.zeros(1), 1).sizes(np.ones((1, 1)), value)  # type: ignore[arg-type]


def test_a_diverged_model_has_none() -> None:
    assert fit_sets(np.full((4, 2), np.nan), np.zeros(4, int)) is None
