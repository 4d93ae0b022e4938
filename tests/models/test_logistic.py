"""The solved head is the optimum that scikit-learn finds, with a penalty that held-out images choose."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from imgcls.models.logistic import PENALTIES, Regression, Solution, solve

CLASSES, WIDTH = 4, 12


def clouds(count: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Features around one centre per class, with scales that differ by a factor of 100, and their labels."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(count) % CLASSES
    features = centres[labels] + spread * torch.randn(count, WIDTH, generator=random)
    return features * torch.logspace(-1, 1, WIDTH) + 3, labels


def accuracy(solution: Solution, features: Tensor, labels: Tensor) -> float:
    return float(((features @ solution.weight.T + solution.bias).argmax(1) == labels).float().mean())


def test_the_solution_is_that_of_scikit_learn() -> None:
    features, labels = clouds(200, 1.5, 0)
    found = solve(features, labels, CLASSES, held_out=clouds(100, 1.5, 1))
    std, mean = torch.std_mean(features, dim=0, correction=0)
    scaled = ((features - mean) / std).double()
    reference = LogisticRegression(C=1 / (found.penalty * len(labels)), tol=1e-8, max_iter=10_000)
    reference.fit(scaled.numpy(), labels.numpy())
    logits = (features @ found.weight.T + found.bias).softmax(1)
    assert logits.numpy() == pytest.approx(reference.predict_proba(scaled.numpy()), abs=5e-3)


def test_features_that_are_not_standardised_are_solved_to_the_same_optimum() -> None:
    features, labels = clouds(300, 1.5, 0)
    features, penalty = features - features.mean(dim=0), 0.01
    regression = Regression(features, labels, torch.ones(len(labels)), CLASSES, standardise=False)
    regression.solve(10 * penalty)
    regression.solve(penalty)
    weight, bias = regression.layer()
    reference = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-9, max_iter=100_000)
    reference.fit(features.double().numpy(), labels.numpy())
    found = (features @ weight.T + bias).softmax(1)
    assert found.numpy() == pytest.approx(reference.predict_proba(features.double().numpy()), abs=2e-3)


@pytest.mark.parametrize("with_validation", [True, False])
def test_noise_gets_a_strong_penalty_and_clear_classes_a_weak_one(with_validation: bool) -> None:
    def penalty(spread: float) -> float:
        held_out = clouds(100, spread, 1) if with_validation else None
        return solve(*clouds(60, spread, 0), CLASSES, held_out=held_out).penalty

    assert penalty(6.0) > 10 * penalty(0.5)


@pytest.mark.parametrize("with_validation", [True, False])
def test_the_chosen_penalty_is_near_the_best_for_unseen_images(
    with_validation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, unseen = clouds(60, 2.5, 0), clouds(2000, 2.5, 2)
    held_out = clouds(200, 2.5, 1) if with_validation else None
    chosen = solve(*train, CLASSES, held_out=held_out)
    each = {}
    for penalty in PENALTIES:
        monkeypatch.setattr("imgcls.models.logistic.PENALTIES", (penalty,))
        each[penalty] = accuracy(solve(*train, CLASSES, held_out=unseen), *unseen)
    assert accuracy(chosen, *unseen) > max(each.values()) - 0.02
    assert min(each.values()) < max(each.values()) - 0.02, "the penalty matters"


def test_the_same_arguments_give_the_same_bits() -> None:
    first, second = (solve(*clouds(90, 2.0, 0), CLASSES, seed=3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_a_class_with_more_weight_is_predicted_more_often() -> None:
    train, unseen = clouds(80, 3.0, 0), clouds(400, 3.0, 1)

    def share(**weights: Tensor) -> float:
        found = solve(*train, CLASSES, held_out=unseen, **weights)
        return float(((unseen[0] @ found.weight.T + found.bias).argmax(1) == 0).float().mean())

    weights = torch.tensor([4.0, 1.0, 1.0, 1.0])
    assert share(class_weights=weights) > 1.3 * share()
    assert share(image_weights=weights[train[1]]) > 1.3 * share()


def test_constant_features_and_a_handful_of_images_are_no_problem() -> None:
    features, labels = clouds(4, 0.1, 0)
    features[:, 3] = 5.0
    found = solve(features, labels, CLASSES)
    assert bool(torch.isfinite(found.weight).all())
    assert accuracy(found, features, labels) == 1
