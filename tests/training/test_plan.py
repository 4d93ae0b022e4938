"""The rules by number of images and classes, and the presets that they belong to."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import imgcls
from imgcls.config.composition import plain
from imgcls.models.backbones import create_network
from imgcls.runs.earlier import complete
from imgcls.training.plan import plan_training
from tests.trainings import Fit


def plan(*overrides: str, images: int, classes: int = 10) -> str:
    cfg = imgcls.compose(["data=caltech256", *overrides])
    data: Any = SimpleNamespace(
        source=SimpleNamespace(train=range(images)),
        num_classes=classes,
        batch_size=cfg.data.batch_size,
        steps_per_epoch=-(-images // cfg.data.batch_size),
    )
    return str(plan_training(cfg, data, solved=False))


@pytest.mark.parametrize(
    ("overrides", "images", "line"),
    [
        (
            [],
            786,
            "preset=good for 786 images, 10 classes: 10 epochs, batches of 32, batch norms",
        ),
        (["preset=best"], 786, "preset=best for 786 images, 10 classes: 40 epochs, "),
        (["preset=best"], 1_000, "preset=best for 1,000 images, 10 classes: 32 epochs, "),
        (["preset=best"], 50_000, "preset=best for 50,000 images, 10 classes: 20 epochs, batches of 32."),
        (["preset=best", "trainer.max_epochs=3"], 786, "preset=best for 786 images, 10 classes: 3 epochs, "),
        (["trainer.max_epochs=1"], 786, "preset=good for 786 images, 10 classes: 1 epoch, batches"),
        (
            ["trainer.max_epochs=-1", "optim.schedule=constant"],
            786,
            "preset=good for 786 images, 10 classes: any number of epochs, batches",
        ),
        (["preset=best", "trainer.max_epochs=10"], 786, "preset=best for 786 images, 10 classes: 10 epochs, "),
        (["preset=best", "model.pretrained=false"], 786, "preset=best for 786 images, 10 classes: 30 epochs, "),
        ([], 50, "preset=good for 50 images, 10 classes: 10 epochs, batches of 32, 0.5 of the learning rate, "),
    ],
)
def test_the_plan_follows_the_number_of_images(overrides: list[str], images: int, line: str) -> None:
    assert plan(*overrides, images=images).startswith(line)


def test_a_preset_sets_defaults_and_explicit_options_win() -> None:
    good, fast, best = (imgcls.compose(["data=cifar10", f"preset={name}"]) for name in ("good", "fast", "best"))
    assert good.preset == imgcls.compose(["data=cifar10"]).preset
    assert (fast.model.freeze, fast.model.solve_head, fast.checkpoint.average) == ("backbone", True, "none")
    assert (good.model.freeze, good.model.views, good.trainer.max_epochs) == ("none", "one", 10)
    assert (best.model.freeze, best.model.views, best.trainer.max_epochs) == ("none", "flip", 20)
    assert (fast.model.freeze, fast.model.views) == ("backbone", "flip")
    own = imgcls.compose(["data=cifar10", "preset=best", "model.views=one", "checkpoint.average=greedy"])
    assert (own.model.views, own.checkpoint.average) == ("one", "greedy")
    assert imgcls.compose(["data=cifar10", "model.freeze=none", "preset=fast"]).model.freeze == "none"
    views = imgcls.compose(["data=cifar10", "preset=fast", "model.feature_views=4"])
    assert not views.model.solve_head, "views of each image have no unique solution"


def test_a_run_stored_without_presets_was_the_default_one() -> None:
    now = plain(imgcls.compose(["data=cifar10"]))["preset"]
    assert complete({"seed": 0})["preset"] == now


def test_a_run_says_what_it_plans_and_does_it(fit: Fit, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "backbone.safetensors"
    save_file(create_network("test_resnet", 3).backbone.state_dict(), file)
    run = functools.partial(fit, f"model.weights={file}", "trainer.max_epochs=${by_start:10,${preset.length},30}")
    best = run("preset=best", "preset.length=1", "preset.steps=9", name="best")
    assert best.metrics["epochs"] == len(best.history) == 3, "nine steps, four per epoch"
    assert "preset=best for 65 images, 3 classes: 3 epochs, batches of 16" in (best.folder / "log.txt").read_text()
    fast = run("preset=fast", name="fast")
    assert fast.metrics["epochs"] == 0
    assert "the head is solved on features" in (fast.folder / "log.txt").read_text()
