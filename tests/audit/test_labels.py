"""Planted wrong labels are found, with probabilities of heads that have not seen them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imgcls.audit.labels import estimate_share, find_wrong_labels
from imgcls.audit.out_of_fold import FOLDS, deal, out_of_fold, principal_components
from imgcls.models.logistic import Regression
from tests.audit.features import clouds, with_wrong_labels

CLASSES = 6


@pytest.mark.parametrize("share", [0.02, 0.05, 0.15])
def test_planted_labels_are_found_and_corrected(share: float) -> None:
    features, true = clouds(1500, CLASSES)
    given, wrong = with_wrong_labels(true, CLASSES, share)
    found = find_wrong_labels(out_of_fold(features, given, CLASSES).probabilities, given)
    assert (wrong & found.wrong).sum() / found.wrong.sum() >= 0.8, "precision"
    assert (wrong & found.wrong).sum() / wrong.sum() >= 0.8, "recall"
    assert (found.suggested == true)[wrong & found.wrong].mean() > 0.9
    assert found.scores[wrong].mean() > found.scores[~wrong].mean()


def test_without_wrong_labels_hardly_any_is_found() -> None:
    features, labels = clouds(1500, CLASSES)
    assert find_wrong_labels(out_of_fold(features, labels, CLASSES).probabilities, labels).wrong.mean() < 0.01


def test_hard_images_are_not_taken_for_wrong_labels() -> None:
    features, labels = clouds(1500, CLASSES, spread=2.5)
    probabilities = out_of_fold(features, labels, CLASSES).probabilities
    errors = (probabilities.argmax(1) != labels).mean()
    assert errors > 0.1
    assert estimate_share(probabilities, labels) < errors / 4


def test_an_image_has_no_part_in_its_own_probabilities() -> None:
    """Another label of an image changes the heads of the other parts, and not the one that judges it."""
    features, labels = clouds(300, 3, spread=2.0)
    before = out_of_fold(features, labels, 3)
    changed = labels.copy()
    part = deal(labels, None, 0) == FOLDS - 1
    image = int(np.flatnonzero(part)[0])
    changed[image] = (labels[image] + 1) % 3
    rest = torch.from_numpy(~part)
    alone = Regression(features[rest], torch.from_numpy(labels)[rest], torch.ones(int(rest.sum())), 3)
    alone.solve(before.penalty)
    weight, bias = alone.layer()
    logits = features[torch.from_numpy(part)] @ weight.T + bias
    assert before.probabilities[part] == pytest.approx(logits.softmax(1).numpy(), abs=5e-3)


def test_wide_features_are_judged_by_their_principal_components(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated, as many components as there is something in find the same as the features themselves."""
    features, true = clouds(1500, CLASSES)
    given, _ = with_wrong_labels(true, CLASSES, 0.05)
    random = torch.Generator().manual_seed(0)
    mixed = torch.cat([features, features @ torch.randn(features.shape[1], 30, generator=random)], dim=1)
    whole = out_of_fold(mixed, given, CLASSES)
    monkeypatch.setattr("imgcls.audit.out_of_fold.COMPONENTS", features.shape[1])
    found = out_of_fold(mixed, given, CLASSES)
    assert found.penalty == whole.penalty
    assert found.probabilities == pytest.approx(whole.probabilities, abs=5e-3)
    components = principal_components(mixed)
    assert components.shape == features.shape
    covariance = torch.cov(components.T)
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 1e-3 * float(covariance.max())


def test_parts_are_even_and_keep_groups() -> None:
    labels = np.repeat([0, 1], [60, 40])
    parts = deal(labels, None, 0)
    assert [np.bincount(parts[labels == label]).tolist() for label in (0, 1)] == [[12] * FOLDS, [8] * FOLDS]
    groups = np.arange(100) // 4
    assert all(len(set(deal(labels, groups, 0)[groups == group])) == 1 for group in range(25))


def test_a_class_of_two_images_and_no_images_at_all() -> None:
    features, labels = clouds(40, 2)
    labels[:2] = 2
    assert np.isfinite(out_of_fold(features, labels, 3).probabilities).all()
    assert deal(np.zeros(0, dtype=np.int64), None, 0).shape == (0,)
    assert estimate_share(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)) == 0
