from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.models.classifier import Classifier
from imgcls.training import arithmetic
from imgcls.training.arithmetic import BFLOAT16, FLOAT32, Arithmetic, computes_in_bfloat16, fastest
from tests.trainings import Fit, stopped_at

PLAIN, LAST = Arithmetic(False, FLOAT32), Arithmetic(True, FLOAT32)
BF16, BF16_LAST = Arithmetic(False, BFLOAT16), Arithmetic(True, BFLOAT16)
CHOICES = [PLAIN, LAST, BF16, BF16_LAST]


def clock(seconds: dict[Arithmetic, list[float]]) -> Callable[[Arithmetic], float]:
    """Steps that take these seconds in turn, and then as long as the last one."""
    return lambda choice: seconds[choice].pop(0) if len(seconds[choice]) > 1 else seconds[choice][0]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([[1.0], [0.96], [0.9], [0.88]], PLAIN),  # within the margins
        ([[1.0], [0.8], [0.9], [0.75]], LAST),  # bfloat16 adds too little to channels last
        ([[1.0], [0.8], [0.9], [0.4]], BF16_LAST),
        ([[9.0, 1.0], [0.1, 2.0], [0.1, 2.0], [0.1, 2.0]], PLAIN),  # the first step of each warms up
        ([[1.0], [9.0, 3.0, 0.8, 0.8], [1.0], [1.0]], PLAIN),  # far slower once: not timed again
        ([[1.0], [0.9, 1.3, 0.5, 0.9], [1.0], [1.0]], LAST),  # the fastest of several steps counts
        ([[1.0], [1.0], [math.inf], [math.inf]], PLAIN),
        ([[math.inf], [0.5], [0.5], [0.5]], PLAIN),  # the training will report why
    ],
)
def test_another_choice_must_be_clearly_faster(seconds: list[list[float]], expected: Arithmetic) -> None:
    chosen, measured = fastest(CHOICES, clock(dict(zip(CHOICES, seconds, strict=True))))
    assert chosen == expected
    assert set(measured) == set(CHOICES)


def test_without_a_complete_round_the_rules_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100_000, 500))
    monkeypatch.setattr(arithmetic.time, "process_time", lambda: float(next(now)))
    assert fastest(CHOICES, clock(dict(zip(CHOICES, [[1.0], [0.1], [0.1], [0.1]], strict=True))))[0] == PLAIN


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Arithmetic]:
    """Every run is long enough, bfloat16 with channels last is the fastest, and each timed step is written down."""
    steps: list[Arithmetic] = []

    class Clock:
        def __init__(self, *_: Any) -> None:
            pass

        def __call__(self, choice: Arithmetic) -> float:
            steps.append(choice)
            return 0.1 if choice == BF16_LAST else 1.0

    monkeypatch.setattr(arithmetic, "MAX_SHARE", 1e9)
    monkeypatch.setattr(arithmetic, "computes_in_bfloat16", lambda: True)
    monkeypatch.setattr(arithmetic, "_Clock", Clock)
    return steps


def weights(run: Any) -> dict[str, Any]:
    return torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_the_choice_is_kept_by_the_run_and_by_the_machine(
    fit: Fit, timed: list[Arithmetic], monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    seen: set[tuple[bool, torch.dtype, bool]] = set()
    original = Classifier.training_step

    def step(self: Classifier, *args: Any) -> torch.Tensor:
        innermost = self.network.backbone.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
        fused = self.trainer.optimizers[0].defaults["fused"]
        seen.add((innermost, torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu"), fused))
        return original(self, *args)

    monkeypatch.setattr(Classifier, "training_step", step)
    whole = fit(name="whole")
    assert seen == {(True, torch.bfloat16, True, True)}
    assert set(timed) == set(CHOICES)
    stored = json.loads((whole.folder / "arithmetic.json").read_text())
    assert (stored["channels_last"], stored["precision"]) == (True, BFLOAT16)
    assert stored["processor_seconds"]["bfloat16, channels last"] == 0.1
    assert "Computing in bfloat16, channels last" in (whole.folder / "log.txt").read_text()

    timed.clear()
    with stopped_at(monkeypatch, 5):
        fit(name="stopped")
    assert not timed, "the same network on the same machine computes as before"
    [kept] = (own_cache / "arithmetic").iterdir()
    kept.write_text(json.dumps({"channels_last": False, "precision": FLOAT32}))
    resumed = fit(name="stopped")
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())
    assert not timed, "a resumed run computes as it began"


def test_what_the_machine_kept_and_is_damaged_is_measured_again(
    fit: Fit, timed: list[Arithmetic], own_cache: Path
) -> None:
    fit("trainer.max_epochs=1", name="first")
    [kept] = (own_cache / "arithmetic").iterdir()
    for content in ("{", '{"precision": 1}'):
        kept.write_text(content)
        timed.clear()
        fit("trainer.max_epochs=1", name=f"second{len(content)}")
        assert timed
        assert json.loads(kept.read_text())["precision"] == BFLOAT16


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.deterministic=true"],
        ["model.channels_last=false", "trainer.precision=32-true"],
        ["trainer.fast_dev_run=true"],
    ],
)
def test_nothing_is_measured_where_nothing_is_left_to_choose(
    fit: Fit, timed: list[Arithmetic], overrides: list[str]
) -> None:
    run = fit("trainer.max_epochs=1", *overrides)
    assert not timed
    assert not (run.folder / "arithmetic.json").exists()


def test_a_run_that_began_without_a_choice_goes_on_without(
    fit: Fit, timed: list[Arithmetic], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(arithmetic, "MAX_SHARE", 0.02)  # too short a run
        with stopped_at(monkeypatch, 5):
            fit()
    fit()
    assert not timed


@pytest.mark.skipif(not computes_in_bfloat16(), reason="this processor only imitates bfloat16")
def test_a_measured_run_repeats_to_the_same_bits_whatever_was_measured_before(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "MAX_SHARE", 1e9)
    monkeypatch.setattr(
        arithmetic, "fastest", lambda choices, seconds_of: (BF16_LAST, {c: seconds_of(c) for c in choices})
    )
    first, second = (
        fit("model.drop_rate=0.2", "trainer.max_epochs=1", name=name) for name in "ab"
    )  # the second does not measure
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())
    spent = json.loads((first.folder / "arithmetic.json").read_text())["processor_seconds"]
    assert len(spent) == 4
    assert all(seconds > 0 for seconds in spent.values())
