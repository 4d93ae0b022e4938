"""A tenth of darkened or blurred images is noticed within 500; usual ones raise no alarm; the accuracy is estimated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imgcls.errors import UserError
from imgcls.monitoring.detection import estimate_accuracy, mix_kinds, watch
from imgcls.monitoring.measures import Measures, _detail
from imgcls.monitoring.perturbations import PERTURBATIONS, Perturbation, blur, darken, shake
from imgcls.monitoring.reference import Reference, fit_reference
from tests.digits import Digits


@pytest.mark.parametrize("worse", [darken, blur, shake])
def test_a_tenth_of_worse_images_is_noticed_within_500(digits: Digits, worse: Perturbation) -> None:
    dice = np.random.default_rng(0)
    images = digits.images
    changed = [worse(image, 0.6, dice) if dice.random() < 0.1 else image for image in images]
    alarms = {found.name: found.alarm for found in watch(digits.reference, digits.measures(changed)) if found.alarm}
    assert alarms
    assert min(alarms.values()) <= 500
    assert not [found.name for found in watch(digits.reference, digits.measures(images)) if found.alarm]


def test_predicted_classes_and_features_that_drift_are_noticed(digits: Digits) -> None:
    """Only eights, of which every single one is usual."""
    images = digits.measures(digits.images)
    eights = np.flatnonzero(images.predicted == 8)
    dice = np.random.default_rng(1)
    chosen = np.where(dice.random(1500) < 0.5, dice.choice(eights, 1500), dice.integers(0, len(images), 1500))
    found = {watched.name: watched for watched in watch(digits.reference, images[chosen])}
    assert found["classes"].alarm is not None
    assert found["features"].alarm is not None
    quiet = {watched.name: watched.alarm for watched in watch(digits.reference, images)}
    assert quiet["classes"] is quiet["features"] is None


def test_the_accuracy_is_estimated_without_labels(digits: Digits) -> None:
    """Much nearer than by the mean confidence, which is too sure of worse images."""
    dice, errors = np.random.default_rng(2), []
    for worse in PERTURBATIONS.values():
        measures = digits.measures([worse(image, float(dice.uniform(0.1, 1)), dice) for image in digits.images])
        estimate = estimate_accuracy(digits.reference, measures)
        assert estimate.low < estimate.value < estimate.high
        true = (measures.predicted == digits.labels).mean()
        errors.append((abs(estimate.value - true), abs(measures.confidence.mean() - true)))
    ours, by_confidence = np.mean(errors, axis=0)
    assert ours < 0.1
    assert ours < by_confidence / 3
    usual = estimate_accuracy(digits.reference, digits.measures(digits.images))
    assert usual.value == pytest.approx(digits.reference.correct.mean(), abs=0.08)


def test_a_reference_is_what_was_saved(digits: Digits, tmp_path: Path) -> None:
    file = tmp_path / "reference.npz"
    digits.reference.save(file)
    read = Reference.load(file)
    images = digits.measures(digits.images[:8])
    assert estimate_accuracy(read, images) == estimate_accuracy(digits.reference, images)
    assert len(read.images) == len(digits.reference.images) == 900
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        Reference.load(file)


def test_a_model_of_several_labels_has_no_reference(digits: Digits) -> None:
    several = replace(digits.model, description={**digits.model.description, "thresholds": [0.5] * 10})
    with pytest.raises(UserError, match="models that give each image one class"):
        fit_reference(several, [])


def test_measures_are_those_of_the_model(digits: Digits) -> None:
    image = digits.images[0]
    measures: Measures = digits.measures([image])
    [[(name, probability), (_, second)]] = [list(answer) for answer in digits.model.top([image], 2)]
    assert digits.model.class_names[measures.predicted[0]] == name
    assert measures.confidence[0] == pytest.approx(probability, abs=1e-5)
    assert measures.margin[0] == pytest.approx(np.log(probability / second), abs=1e-3)
    assert measures.brightness[0] == pytest.approx(np.asarray(image).mean() / 255, abs=1e-5)


def test_the_mix_of_kinds_is_estimated_from_all_images() -> None:
    """Of images that are hard to tell apart, the share of each kind is nearly right all the same."""
    dice = np.random.default_rng(3)
    kinds = np.repeat([0, 1], [1800, 200])
    numbers = dice.normal(size=2000) + 1.5 * kinds  # overlap
    likelihoods = np.exp(-0.5 * (numbers[:, None] - [0, 1.5]) ** 2)
    equal = likelihoods / likelihoods.sum(axis=1, keepdims=True)
    assert equal[:, 1].mean() > 0.25
    assert mix_kinds(equal)[:, 1].mean() == pytest.approx(0.1, abs=0.03)


def test_detail_is_lost_in_any_direction_of_movement() -> None:
    still = np.random.default_rng(4).random((64, 64))
    for down, right in ((0, 1), (1, 1), (1, 0), (1, -1)):
        moved = np.mean([np.roll(still, (step * down, step * right), (0, 1)) for step in range(5)], axis=0)
        assert _detail(moved[None]) < _detail(still[None]) - 0.2, (down, right)
    assert _detail(np.full((1, 7, 9), 0.5)) == pytest.approx(0), "nothing to see, and an odd size"
