"""Each rule fires on a training that is sick in its way, and not on a healthy one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn

import imgcls
from imgcls.debug.observations import Observation, Record, share_below
from imgcls.debug.rules import FAILED, ISSUES, NO_ISSUES, Rule
from imgcls.debug.series import Series
from imgcls.debug.storage import read_record
from imgcls.debug.tensor_rules import DeadRelu
from imgcls.debug.training_rules import StalledTraining
from imgcls.models.ema import WeightAveraging
from tests.debug.trainings import WIDTH, deep_backbone, healthy_backbone, indistinct, pictures, train
from tests.processes import Forked

RULES: dict[str, Rule] = instantiate(imgcls.compose([]).debug.rules, _convert_="all")


class DeadBranch(nn.Module):
    """A backbone with a branch that does not affect its output."""

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
        module.weight.mul_(1e6)


def scaled(factor: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    images, labels = pictures(160)
    return images * factor + offset, labels


class Shuffle(L.Callback):
    """Shuffles the labels from the fifth epoch on."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch >= 4:
            labels = trainer.train_dataloader.dataset.tensors[1]
            labels.copy_(labels[torch.randperm(len(labels))])


SICK: dict[str, Callable[[], dict[str, Any]]] = {
    "VanishingGradient": lambda: {"backbone": deep_backbone(nn.Sigmoid)},
    "ExplodingTensor": lambda: {"backbone": deep_backbone(nn.ReLU, 3), "lr": 1e8, "epochs": 2},
    "PoorWeightInitialization": lambda: {"backbone": with_weights(deep_backbone(nn.ReLU, 6), tiny), "lr": 1e-3},
    "DeadRelu": lambda: {"backbone": with_weights(healthy_backbone(), dead), "epochs": 1},
    "SaturatedActivation": lambda: {"backbone": with_weights(deep_backbone(nn.Tanh, 3), huge), "epochs": 1},
    "UnchangedTensor": lambda: {"backbone": healthy_backbone(), "lr": 1e-9, "epochs": 1},
    "WeightUpdateRatio": lambda: {"backbone": healthy_backbone(), "lr": 1e4, "epochs": 1},
    "AllZero": lambda: {"backbone": DeadBranch(), "epochs": 1},
    "TensorVariance": lambda: {"backbone": healthy_backbone(), "data": scaled(1e5), "epochs": 1},
    "Overfit": lambda: {
        "backbone": deep_backbone(nn.ReLU, 2),
        "data": pictures(32, random_labels=True),
        "lr": 0.1,
        "epochs": 60,
    },
    "Overtraining": lambda: {"backbone": healthy_backbone(), "lr": 1e-9, "epochs": 20},
    "LossNotDecreasing": lambda: {"backbone": healthy_backbone(), "lr": 1e-9, "epochs": 10},
    "ClassImbalance": lambda: {"backbone": healthy_backbone(), "epochs": 1, "class_counts": (600, 300, 59, 100)},
    "ClassImbalance, misprediction": lambda: {
        "backbone": healthy_backbone(),
        "data": indistinct(400),
        "val": indistinct(200, seed=1),
        "class_counts": (300, 300, 300, 60),
    },
    "LossNotDecreasing, rising": lambda: {"backbone": healthy_backbone(), "epochs": 12, "callbacks": (Shuffle(),)},
    "CheckInputImages": lambda: {"backbone": healthy_backbone(), "data": scaled(1, 0.5), "epochs": 4},
}


@pytest.mark.parametrize(("train", "val", "fires"), [(1.0, 0.36, True), (0.9, 0.7, False), (0.4, 0.9, False)])
def test_knowing_the_training_images_only_is_an_issue(train: float, val: float, fires: bool) -> None:
    history = ({"epoch": 0, "step": 9, "train/accuracy": train, "val/accuracy": val, "train/loss": 1, "val/loss": 1},)
    outcome = RULES["GeneralizationGap"].check(Record(history=history))
    assert (outcome.status == ISSUES) == fires
    assert ("100.0% in training, but 36.0% in validation" in outcome.sentence) == fires


@pytest.mark.parametrize(("sizes", "layers"), [((1e-9, 1e-8, 1e-3), ["a", "b"]), ((1e-3, 1e-9, 1e-2), [])])
def test_gradients_vanish_from_the_first_layer_on(sizes: tuple[float, ...], layers: list[str]) -> None:
    observations = [Observation(step, 0, 0.1, dict(zip("abc", sizes, strict=True))) for step in (20, 22)]
    outcome = RULES["VanishingGradient"].check(Record(observations=observations))
    assert (outcome.status == ISSUES) == bool(layers), "not that of a residual branch whose last norm is near zero"
    assert list(outcome.layers) == layers


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("healthy")
    return train(folder, healthy_backbone(), epochs=8, class_counts=(140, 130, 120, 110), rules=RULES).record


@pytest.mark.parametrize("name", RULES)
def test_a_healthy_training_has_no_issues(name: str, healthy: Record) -> None:
    assert healthy.history[-1]["val/accuracy"] > 0.9
    outcome = RULES[name].check(healthy)
    assert (outcome.status, outcome.sentence) == (NO_ISSUES, "")
    assert outcome.datapoints > 0 or name == "SaturatedActivation"


def test_a_network_of_sigmoids_that_learns_is_not_saturated(tmp_path: Path) -> None:
    record = train(tmp_path, deep_backbone(nn.Sigmoid, 1), epochs=4, lr=0.5).record
    assert record.losses[-1] < record.losses[0] / 2
    outcome = RULES["SaturatedActivation"].check(record)
    assert (outcome.status, outcome.datapoints) == (NO_ISSUES, 20)


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "frozen": lambda: {"freeze": "backbone", "backbone": deep_backbone(nn.ReLU, 1), "lr": 0.5},
    "frozen at first": lambda: {"freeze": "head_first"},
    "averaged": lambda: {"callbacks": (WeightAveraging(0.9),)},
    "accumulated": lambda: {"accumulate_grad_batches": 2},
    "bf16": lambda: {"precision": "bf16-mixed"},
    "compiled": lambda: {"backbone": compiled(healthy_backbone())},
    "observed rarely": lambda: {"every": 7},
}


def compiled(backbone: nn.Module) -> nn.Module:
    backbone.compile(backend="eager")
    return backbone


@pytest.mark.parametrize("name", VARIANTS)
def test_no_way_of_training_confuses_rules(name: str, tmp_path: Path) -> None:
    options = {"backbone": healthy_backbone(), "epochs": 8, "class_counts": (140, 130, 120, 110), **VARIANTS[name]()}
    recorder = train(tmp_path, rules=RULES, **options)
    found = {outcome.rule: outcome.sentence for outcome in recorder.outcomes.values() if outcome.status != NO_ISSUES}
    assert found == {}
    assert recorder.record.losses[-1] < recorder.record.losses[0]
    assert recorder.record.history[-1]["val/accuracy"] > 0.8


@pytest.fixture
def two_processes() -> dict[str, Any]:
    """Options of a training in two processes."""
    return {"strategy": Forked(), "devices": 2, "batch_size": 16}


def test_gradients_of_two_processes_are_those_of_the_whole_batch(tmp_path: Path, two_processes: dict[str, Any]) -> None:
    backbone, data = deep_backbone(nn.ReLU, 2), pictures(32)  # one batch
    alone = train(tmp_path / "one", deepcopy(backbone), epochs=3, data=data)
    train(tmp_path / "two", backbone, epochs=3, data=data, **two_processes)
    two = read_record(tmp_path / "two", [])
    assert len(two.losses) == len(alone.record.losses) == 3
    for expected, observed in zip(alone.record.observations, two.observations, strict=True):
        assert observed.gradient_size == pytest.approx(expected.gradient_size, rel=1e-3)


def test_two_processes_do_not_confuse_rules(tmp_path: Path, two_processes: dict[str, Any]) -> None:
    counts = (140, 130, 120, 110)
    train(tmp_path, healthy_backbone(), epochs=6, rules=RULES, class_counts=counts, **two_processes)
    outcomes = json.loads((tmp_path / "rules.json").read_text())
    assert {row["rule"]: row["sentence"] for row in outcomes if row["status"] != NO_ISSUES} == {}
    assert len(outcomes) == 16


def test_infinite_gradients_that_a_scaler_skips_are_no_explosion(tmp_path: Path) -> None:
    class Overflow(L.Callback):
        """As happens with 16 bits: the gradients of a step are infinite, and the step is skipped."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.precision_plugin.scaler = self.scaler

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 2:
                self.finite = [parameter.grad.clone() for parameter in pl_module.network.parameters()]
                for parameter in pl_module.network.parameters():
                    parameter.grad.fill_(torch.inf)

    class Repair(Checkpoint):
        def __init__(self, overflow: Overflow) -> None:
            self.overflow = overflow

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 2:
                for parameter, finite in zip(pl_module.network.parameters(), self.overflow.finite, strict=True):
                    parameter.grad.copy_(finite)

    for scaler, status in ((object(), NO_ISSUES), (None, ISSUES)):
        overflow = Overflow()
        overflow.scaler = scaler  # type: ignore[attr-defined]
        folder = tmp_path / status
        recorder = train(folder, healthy_backbone(), epochs=1, callbacks=(overflow,), last=(Repair(overflow),))
        assert RULES["ExplodingTensor"].check(recorder.record).status == status


@pytest.mark.parametrize("name", SICK)
def test_a_sick_training_is_detected(name: str, tmp_path: Path) -> None:
    rule, _, part = name.partition(", ")
    outcome = RULES[rule].check(train(tmp_path, **SICK[name]()).record)
    assert outcome.status == ISSUES
    assert outcome.sentence.endswith(".")
    assert outcome.advice
    assert outcome.parameters
    if name in ("VanishingGradient", "DeadRelu", "SaturatedActivation", "AllZero"):
        assert outcome.layers
        assert outcome.steps
    expected = {"misprediction": "class 3 has 60 training images", "rising": "risen again"}
    assert expected.get(part, "") in outcome.sentence
    if name == "DeadRelu":
        assert outcome.layers[0] == "backbone.2"
    if name == "AllZero":
        assert all("unused" in layer for layer in outcome.layers)


def test_a_stall_is_reported_while_it_lasts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Wait(L.Callback):
        """Holds the fourth batch until the stall has been written."""

        reported = False

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            deadline = time.monotonic() + 60
            while batch_idx == 3 and not self.reported and time.monotonic() < deadline:
                threading.Event().wait(0.01)
                rules = tmp_path / "rules.json"
                self.reported = rules.is_file() and "Step 3 has taken" in rules.read_text()

    wait, rule = Wait(), StalledTraining(threshold=0.3)
    recorder = train(tmp_path, healthy_backbone(), epochs=1, rules={rule.name: rule}, callbacks=(wait,))
    assert wait.reported
    assert "StalledTraining: Step 3 has taken" in caplog.text
    assert 3 in recorder.outcomes[rule.name].steps
    assert StalledTraining().check(recorder.record).status == NO_ISSUES
    assert not [thread for thread in threading.enumerate() if thread.name == "imgcls-stalls"]


@pytest.mark.parametrize("name", ["LossNotDecreasing", "PoorWeightInitialization"])
def test_rules_wait_for_the_warm_up(name: str) -> None:
    early = Observation(0, 0, 4.8, input_variance={"a": 1.0, "b": 100.0})
    rates = tuple(min(1.0, step / 60) for step in range(300))

    def status(steps: int, epochs: int, falling: float = 0.0) -> str:
        losses = tuple(4.8 - falling * max(0, step - 60) for step in range(steps))
        history = tuple({"epoch": float(epoch)} for epoch in range(epochs))
        return RULES[name].check(Record((early,), Series(losses), Series(rates[:steps]), history)).status

    assert status(55, 0) == NO_ISSUES, "the rate still rises"
    assert status(62, 1) == NO_ISSUES, "the rate has just risen"
    assert status(124, 2) == status(200, 0) == ISSUES
    assert status(200, 0, falling=0.01) == NO_ISSUES


@pytest.mark.parametrize("name", ["LossNotDecreasing", "PoorWeightInitialization"])
def test_weights_that_are_good_from_the_start_need_not_get_better(name: str) -> None:
    early = Observation(0, 0, 0.2, input_variance={"a": 1.0, "b": 100.0})

    def status(loss: float, last: float, metric: str = "train/accuracy") -> str:
        losses = (*(loss,) * 100, *(last,) * 100)
        history, counts = ({"epoch": 0.0, metric: 0.9},), (20, 20, 20, 20)
        record = Record((early,), Series(losses), Series((0.1,) * 200), history, class_counts=counts)
        return RULES[name].check(record).status

    assert status(1.4, 1.4) == ISSUES, "the loss of a guess is 1.39"
    assert status(0.2, 0.3) == NO_ISSUES
    assert status(0.2, 0.3, metric="train/map") == ISSUES, "of several labels nobody knows what a guess costs"
    if name == "LossNotDecreasing":
        assert status(0.2, 1.3) == ISSUES, "what was good is no longer"


def test_tiny_steps_of_a_warm_up_are_no_unchanged_layers() -> None:
    still = tuple(Observation(step, 0, 1.0, update_ratio={"a": 1e-6}, weight_size={"a": 1.0}) for step in range(5))
    rising = tuple(0.01 * (step + 1) for step in range(60))

    def status(rates: tuple[float, ...]) -> str:
        return RULES["UnchangedTensor"].check(Record(still, Series((1.0,) * len(rates)), Series(rates))).status

    assert status(rising[:5]) == status(rising + (0.6,) * 60) == NO_ISSUES
    assert status((0.1,) * 60) == ISSUES


def test_tiny_steps_at_the_end_of_a_schedule_are_no_unchanged_layers() -> None:
    def status(ratio: float) -> str:
        tiny = tuple(Observation(step, 0, 1.0, update_ratio={"a": ratio}, weight_size={"a": 1.0}) for step in range(5))
        rates = Series((0.1, *(1e-4,) * 4))
        return RULES["UnchangedTensor"].check(Record(tiny, Series((1.0,) * 5), rates)).status

    assert status(1e-6) == NO_ISSUES, "1e-3 at the largest rate"
    assert status(1e-9) == ISSUES


def test_shares_of_channels_come_from_quantiles() -> None:
    quantiles = torch.quantile(torch.cat([torch.zeros(60), torch.ones(40)]), torch.linspace(0, 1, 21)).tolist()
    assert share_below(quantiles, 0.01) == pytest.approx(0.6, abs=0.05)
    assert share_below([0.5] * 21, 0.5) == 0.0
    assert share_below([0.1] * 21, 0.5) == 1.0


def test_thresholds_apply(tmp_path: Path) -> None:
    backbone = with_weights(healthy_backbone(), dead)
    record = train(tmp_path, backbone, epochs=1).record
    assert DeadRelu(threshold_layer=100.0).check(record).status == NO_ISSUES
    assert DeadRelu(threshold_inactivity=0.0).check(record).status == NO_ISSUES
    assert DeadRelu(threshold_inactivity=100.0, threshold_layer=5.0).check(record).status == ISSUES


def test_shuffled_labels_and_a_rate_of_ten_are_detected(tmp_path: Path) -> None:
    images, labels = pictures(160)
    shuffled = images, labels[torch.randperm(160, generator=torch.Generator().manual_seed(0))]
    wild = train(tmp_path, deep_backbone(nn.ReLU, 4), lr=10.0, data=shuffled, epochs=8)
    fired = {name for name, rule in RULES.items() if rule.check(wild.record).status == ISSUES}
    assert fired & {"LossNotDecreasing", "ExplodingTensor", "WeightUpdateRatio"}


def test_a_rule_that_fails_reports_it() -> None:
    outcome = RULES["Overfit"].check(Record(history=({"epoch": 0, "val/loss": 1.0},)))
    assert outcome.status == FAILED
    assert "train/loss" in outcome.sentence
