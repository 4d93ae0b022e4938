"""Each rule catches a training that is sick in its way, and is silent in a healthy one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

import imgcls
from imgcls.debug import recorder as recording
from imgcls.debug.observations import Record
from imgcls.debug.rules import FAILED, ISSUES, NO_ISSUES, Rule
from imgcls.debug.training_rules import StalledTraining
from tests.debug.trainings import WIDTH, deep_backbone, healthy_backbone, pictures, record_of, train

RULES: dict[str, Rule] = instantiate(imgcls.compose([]).debug.rules, _convert_="all")


class Cut(nn.Module):
    """A backbone with a branch that counts for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.unused = healthy_backbone(), nn.Sequential(nn.Flatten(), nn.Linear(192, WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) + 0 * self.unused(images)


def with_weights(backbone: nn.Module, change: Callable[[nn.Module], None]) -> nn.Module:
    backbone.apply(change)
    return backbone


@torch.no_grad()
def tiny(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight.mul_(0.01)
        module.bias.zero_()


@torch.no_grad()
def dead(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d):
        module.bias.fill_(-100.0)


@torch.no_grad()
def huge(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight.mul_(1000.0)


def scaled(factor: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    images, labels = pictures(160)
    return images * factor + offset, labels


SICK: dict[str, Callable[[], dict[str, Any]]] = {
    "VanishingGradient": lambda: {"backbone": deep_backbone(nn.Sigmoid)},
    "ExplodingTensor": lambda: {"backbone": deep_backbone(nn.ReLU, 3), "lr": 1e8, "epochs": 2},
    "PoorWeightInitialization": lambda: {"backbone": with_weights(deep_backbone(nn.ReLU, 6), tiny), "lr": 1e-3},
    "DeadRelu": lambda: {"backbone": with_weights(healthy_backbone(), dead), "epochs": 1},
    "SaturatedActivation": lambda: {"backbone": with_weights(deep_backbone(nn.Tanh, 3), huge), "epochs": 1},
    "UnchangedTensor": lambda: {"backbone": healthy_backbone(), "lr": 1e-9, "epochs": 1},
    "WeightUpdateRatio": lambda: {"backbone": healthy_backbone(), "lr": 1e4, "epochs": 1},
    "AllZero": lambda: {"backbone": Cut(), "epochs": 1},
    "TensorVariance": lambda: {"backbone": healthy_backbone(), "data": scaled(1e5), "epochs": 1},
    "Overfit": lambda: {
        "backbone": deep_backbone(nn.ReLU, 2),
        "data": pictures(32, random_labels=True),
        "lr": 0.1,
        "epochs": 60,
    },
    "Overtraining": lambda: {"backbone": healthy_backbone(), "lr": 1e-9, "epochs": 12},
    "LossNotDecreasing": lambda: {"backbone": healthy_backbone(), "lr": 1e-9, "epochs": 10},
    "ClassImbalance": lambda: {"backbone": healthy_backbone(), "epochs": 1, "class_counts": (600, 300, 59, 100)},
    "CheckInputImages": lambda: {"backbone": healthy_backbone(), "data": scaled(1, 0.5), "epochs": 4},
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return record_of(
        train(tmp_path_factory.mktemp("healthy"), healthy_backbone(), epochs=8, class_counts=(40, 40, 40, 40))
    )


@pytest.mark.parametrize("name", RULES)
def test_a_healthy_training_is_left_in_peace(name: str, healthy: Record) -> None:
    assert healthy.history[-1]["val/accuracy"] > 0.9
    outcome = RULES[name].check(healthy)
    assert (outcome.status, outcome.sentence) == (NO_ISSUES, "")
    assert outcome.datapoints > 0 or name in ("StalledTraining", "SaturatedActivation")  # no pause, no sigmoid


@pytest.mark.parametrize("name", SICK)
def test_a_sick_training_is_caught(name: str, tmp_path: Path) -> None:
    outcome = RULES[name].check(record_of(train(tmp_path, **SICK[name]())))
    assert outcome.status == ISSUES
    assert outcome.sentence.endswith(".")
    assert outcome.advice
    assert outcome.parameters
    if name in ("VanishingGradient", "DeadRelu", "SaturatedActivation", "AllZero"):
        assert outcome.layers
        assert outcome.steps
    if name == "DeadRelu":
        assert outcome.layers[0] == "backbone.2"
    if name == "AllZero":
        assert all("unused" in layer for layer in outcome.layers)


def test_a_step_that_takes_too_long_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "LONG", 0.0)
    record = record_of(train(tmp_path, healthy_backbone(), epochs=1))
    assert StalledTraining(threshold=-1.0).check(record).steps == tuple(range(5))
    assert StalledTraining().check(record).status == NO_ISSUES


def test_shuffled_labels_and_a_rate_of_ten_are_caught(tmp_path: Path) -> None:
    images, labels = pictures(160)
    shuffled = images, labels[torch.randperm(160, generator=torch.Generator().manual_seed(0))]
    wild = train(tmp_path, deep_backbone(nn.ReLU, 4), lr=10.0, data=shuffled, epochs=8)
    caught = {name for name, rule in RULES.items() if rule.check(record_of(wild)).status == ISSUES}
    assert caught & {"LossNotDecreasing", "ExplodingTensor", "WeightUpdateRatio"}


def test_a_rule_that_fails_says_so() -> None:
    outcome = RULES["Overfit"].check(Record(history=({"epoch": 0, "val/loss": 1.0},)))
    assert outcome.status == FAILED
    assert "train/loss" in outcome.sentence
