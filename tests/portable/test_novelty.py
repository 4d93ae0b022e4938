"""The novelty of simulated features, whose unknown images are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from imgcls.portable.novelty import Novelty, fit_novelty, minimum_images

WIDTH, CLASSES = 32, 4


def simulate(count: int, seed: int, unknown: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels: directions of classes with noise; unknown images have a direction of no class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    own = rng.integers(CLASSES, WIDTH, count) if unknown else labels
    features = rng.uniform(1, 9, (count, 1)) * (4 * np.eye(WIDTH)[own] + 0.3 * rng.normal(size=(count, WIDTH)))
    return features.astype(np.float32), labels


def fit(validation: int, seed: int = 0, share: float = 0.95) -> Novelty:
    novelty = fit_novelty(*simulate(400, seed=1000 + seed), simulate(validation, seed=2000 + seed)[0], share)
    assert novelty is not None
    return novelty


def test_unknown_images_are_told_from_known_ones() -> None:
    novelty = fit(500)
    known, unknown = simulate(2000, 1)[0], simulate(2000, 2, unknown=True)[0]
    assert (novelty.of(known) <= 1).mean() == pytest.approx(0.95, abs=0.02)
    assert (novelty.of(unknown) > 1).mean() > 0.99
    assert np.median(novelty.of(known)) == pytest.approx(0, abs=0.1)
    tested = novelty.measured(known)
    assert tested.test == (novelty.of(known) <= 1).mean()
    assert f"{1 - tested.test:.1%} of the test images" in str(tested)


@pytest.mark.parametrize("share", [0.8, 0.95])
def test_as_many_known_images_as_requested_are_known_in_the_mean_of_small_validations(share: float) -> None:
    known = simulate(2000, 1)[0]
    shares = [(fit(39, seed, share).of(known) <= 1).mean() for seed in range(200)]
    assert np.mean(shares) == pytest.approx(share, abs=0.015)


def test_a_frozen_network_needs_no_more_validation_images_for_a_bound_that_hardly_varies() -> None:
    """Training images count too, each by the means without it: as known as any other image, however few a class has."""
    known = simulate(2000, 1)[0]
    shares: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(100):
        train, val = simulate(60, 1000 + seed), simulate(39, 2000 + seed)[0]
        for frozen, found in shares.items():
            novelty = fit_novelty(*train, val, 0.9, frozen=frozen)
            assert novelty is not None
            assert novelty.images == (99 if frozen else 39)
            found.append(float((novelty.of(known) <= 1).mean()))
    assert np.mean(shares[True]) == pytest.approx(0.9, abs=0.01)
    assert np.std(shares[True]) < 0.75 * np.std(shares[False])


def test_the_only_training_image_of_a_class_does_not_count() -> None:
    features, labels = simulate(100, 0)
    labels = np.append(np.where(labels == 3, 2, labels), 7)
    features = np.append(features, np.eye(WIDTH, dtype=np.float32)[-1:], axis=0)
    novelty = fit_novelty(features, labels, features[:0], 0.9, frozen=True)
    assert novelty is not None
    assert (novelty.images, len(novelty.means)) == (100, 4)


def test_too_few_images_give_no_bound() -> None:
    assert minimum_images(0.95) == 19
    features, labels = simulate(100, 0)
    assert fit_novelty(features, labels, features[:18], 0.95) is None
    assert fit_novelty(features, labels, features[:19], 0.95) is not None
    assert fit_novelty(features, labels, np.repeat(features[:1], 50, 0), 0.95) is None, "which all are the same"
    assert fit_novelty(features * np.nan, labels, features, 0.95) is None


def test_it_is_stored_as_json_and_an_array() -> None:
    novelty = fit(100)
    features, _ = simulate(50, 3)
    again = Novelty.from_dict(json.loads(json.dumps(novelty.as_dict())), novelty.means)
    assert np.allclose(again.of(features), novelty.of(features))
    assert str(replace(again, share=0.95, images=1898, test=0.5)) == (
        "An image with a novelty above 1 counts as unknown: "
        "by mistake 5.0% of 1,898 images of known classes, and 50.0% of the test images."
    )
    with pytest.raises(ValueError, match="finite"):
        Novelty.from_dict({**novelty.as_dict(), "scale": float("nan")}, novelty.means)
