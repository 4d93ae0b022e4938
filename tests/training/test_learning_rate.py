"""The learning-rate finder: its suggestions from curves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import imgcls
from imgcls.errors import UserError
from imgcls.training.learning_rate import choose_learning_rate, read_curve

RATES = np.geomspace(1e-6, 10, 120)


def losses(fall: float, explosion: float, noise: float, seed: int, least: float = 0.5) -> list[float]:
    """A loss that falls from 2.3 around the rate `fall` and explodes at `explosion`, with noise."""
    rng = np.random.default_rng(seed)
    depth = 1 / (1 + np.exp(-4 * np.log10(RATES / fall)))
    values = 2.3 - (2.3 - least) * depth + 20 * np.maximum(0, np.log10(RATES / explosion)) ** 2
    values = values + rng.normal(0, noise, len(RATES))
    ends = np.flatnonzero(values > 3 * 2.3)
    return values[: ends[0] if len(ends) else None].tolist()


@pytest.mark.parametrize("fall", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_the_suggestion_is_within_the_fall(fall: float, noise: float) -> None:
    for seed in range(20):
        curve = read_curve(RATES, [losses(fall, 30 * fall, noise, 3 * seed + start) for start in range(3)])
        assert fall / 10 < curve.suggestion < 20 * fall
        at = int(np.argmin(np.abs(np.log(RATES) - np.log(curve.suggestion))))
        assert curve.loss[at] < 2.2, "the loss has begun to fall there"


def test_a_dip_in_a_noisy_start_is_not_the_fall() -> None:
    curves = [losses(1e-2, 0.3, 0.02, start) for start in range(3)]
    for values in curves:
        values[12:16] = [1.9, 1.6, 1.9, 2.2]
    assert 1e-3 < read_curve(RATES, curves).suggestion < 0.2


def test_the_shortest_start_decides_how_far_the_curve_goes() -> None:
    curves = [losses(1e-3, 0.03, 0.0, 0), losses(1e-3, 0.3, 0.0, 1)]
    curve = read_curve(RATES, curves)
    assert len(curve.lr) == len(curves[0]) < len(curves[1])


@pytest.mark.parametrize("values", [np.full(120, 2.3), np.linspace(2.3, 6, 120)], ids=["flat", "rising"])
def test_a_loss_that_never_fell_is_an_error(values: np.ndarray) -> None:
    with pytest.raises(UserError, match="never fell"):
        read_curve(RATES, [values.tolist()])


@pytest.mark.parametrize("values", [[], [2.3], [2.3, 2.2]])
def test_a_start_that_explodes_at_once_is_an_error(values: list[float]) -> None:
    with pytest.raises(UserError, match="never fell"):
        read_curve(RATES, [values])


def test_few_images_per_class_get_a_lower_rate(tmp_path: Path) -> None:
    cfg = imgcls.compose(["data=cifar10", "model.pretrained=true"])

    network: Any = None
    devices: Any = None

    def rate(images: int) -> float:
        data: Any = SimpleNamespace(source=SimpleNamespace(train=range(images)), num_classes=10)
        return choose_learning_rate(cfg, network, data, devices, tmp_path)

    assert rate(200) == rate(3000) == cfg.optim.lr
    assert rate(50) == pytest.approx(cfg.optim.lr / 2)


def test_a_rate_that_is_given_is_used_as_it_is() -> None:
    assert imgcls.compose(["data=cifar10"]).optim.few_images == 20
    for own in (["optim.lr=1e-3"], ["model.pretrained=false"], ["model.freeze=backbone"]):
        assert imgcls.compose(["data=cifar10", *own]).optim.few_images == 0
