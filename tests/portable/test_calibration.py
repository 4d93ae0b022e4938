"""The temperature of simulated logits, whose right probabilities are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from imgcls.portable.calibration import (
    LOWEST,
    calibrate,
    expected_error,
    fit_temperature,
    judge,
    match_confidence,
    noise_of,
)


def simulate(count: int, temperature: float, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are calibrated when they are divided by `temperature`, and labels drawn accordingly."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in probabilities])
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [3.0, 0.4])
def test_the_temperature_is_found_and_its_effect_is_measured_on_other_images(temperature: float) -> None:
    test = simulate(4000, temperature, seed=1)
    fitted = calibrate(*simulate(4000, temperature), test)
    assert fitted.temperature == pytest.approx(temperature, rel=0.1)
    for split in ("val", "test"):
        before, after = fitted.effect[split]
        assert after.ece < 0.03 < before.ece
        assert after.nll < before.nll
        assert after.brier < before.brier
    assert (test[0].argmax(axis=1) == (test[0] / fitted.temperature).argmax(axis=1)).all()
    assert f"divides its logits by {fitted.temperature:.3g}" in str(fitted)


def test_the_confidence_is_right_even_where_the_other_classes_are_not() -> None:
    """Logits whose unlikely classes are too unlikely: the lowest log loss raises them, and loses the confidence."""
    rng = np.random.default_rng(0)

    def simulate_steep(count: int) -> tuple[np.ndarray, np.ndarray]:
        logits, labels = simulate(count, 1.0, 40, seed=int(rng.integers(1000)))
        order = np.sort(logits, axis=1)[:, ::-1]
        return np.where(logits < order[:, 3:4], order[:, 3:4] - 2 * (order[:, 3:4] - logits), logits), labels

    (logits, labels), test = simulate_steep(4000), simulate_steep(4000)
    matched, likeliest = (judge(*test, fit(logits, labels)).quality.ece for fit in (match_confidence, fit_temperature))
    assert matched < 0.04 < 0.06 < likeliest
    assert calibrate(logits, labels).temperature == match_confidence(logits, labels)


@pytest.mark.parametrize("fit", [fit_temperature, match_confidence])
@pytest.mark.parametrize("count", [20, 2000])
def test_images_that_are_all_right_give_no_certainty(
    count: int, fit: Callable[[np.ndarray, np.ndarray], float]
) -> None:
    labels = np.arange(count) % 4
    temperature = fit(6.0 * np.eye(4)[labels], labels)
    assert temperature > 2 * LOWEST
    confidence = 1 / (1 + 3 * np.exp(-6 / temperature))
    assert confidence == pytest.approx((count + 1) / (count + 2), abs=0.1 / count), "Laplace's rule of succession"


def test_a_temperature_that_does_not_help_is_not_used() -> None:
    fitted = calibrate(*simulate(60, 1.0, seed=4))
    assert fitted.temperature == 1
    before, after = fitted.effect["val"]
    assert before == after
    assert "no temperature improves" in str(fitted)


def test_a_diverged_network_has_no_temperature() -> None:
    logits = np.full((10, 3), np.nan)
    labels = np.zeros(10, dtype=int)
    assert calibrate(logits, labels, (logits, labels)).temperature == 1


def test_quality_has_known_values() -> None:
    logits = np.log(np.array([[0.8, 0.2], [0.6, 0.4]]))
    found = judge(logits, np.array([0, 1])).quality
    assert found.nll == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)
    assert found.brier == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert found.ece == pytest.approx((0.2 + 0.6) / 2)


def test_the_error_of_perfect_confidences_is_noise_and_shrinks_with_the_root_of_the_images() -> None:
    noises, errors = {}, {}
    for count in (500, 8000):
        logits, labels = simulate(count, 1.0, seed=3)
        judged = judge(logits, labels)
        noises[count] = noise_of(judged.confidence)
        drawn = [judge(*simulate(count, 1.0, seed=10 + seed)) for seed in range(20)]
        errors[count] = np.mean([expected_error(part.confidence, part.correct) for part in drawn])
        assert noises[count] == pytest.approx(errors[count], rel=0.15)
    assert noises[500] == pytest.approx(4 * noises[8000], rel=0.15)
    assert noise_of(np.full(100, 1.0)) == 0
    fitted = calibrate(*simulate(500, 3.0), simulate(500, 3.0, seed=1))
    assert f"{fitted.noise['test']:.2g}." in str(fitted)
