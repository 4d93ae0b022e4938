"""The recipes in conf/experiment/ are what the page says of them: the five reference systems, each with its search."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig

from imgcls.config.composition import compose, plain
from imgcls.config.groups import config_dir

RECIPES = sorted(path.stem for path in (config_dir() / "experiment").glob("[!_]*.yaml"))
PAGE = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()


@cache
def composed(experiment: str) -> DictConfig:
    return compose([f"experiment={experiment}", f"data.root={Path(__file__).parent}"])


@pytest.mark.parametrize(
    ("experiment", "model", "freeze", "optimiser", "searched", "objective"),
    [
        ("cifar10_resnet50", "resnet50", "backbone", "Adam", {"optim.lr", "trainer.max_epochs"}, "val/loss"),
        (
            "dogbreeds_efficientnet_b2",
            "efficientnet_b2",
            "backbone",
            "Adam",
            {"optim.lr", "data.batch_size"},
            "val/loss",
        ),
        ("dogbreeds_resnet50", "resnet50", "backbone", "Adam", {"optim.lr", "data.batch_size"}, "val/loss"),
        (
            "dogbreeds_resnet18",
            "resnet18",
            "backbone",
            "Adam",
            {"optim.lr", "data.batch_size", "trainer.max_epochs"},
            "val/accuracy",
        ),
        ("bin_counts", "resnet18", "head_first", "AdamW", {"optim.lr", "data.batch_size"}, "val/accuracy"),
        (
            "caltech256_resnet18",
            "resnet18",
            "none",
            "SGD",
            {"optim.lr", "data.batch_size", "optim.momentum"},
            "val/accuracy",
        ),
    ],
)
def test_a_recipe_is_the_reference_system(
    experiment: str, model: str, freeze: str, optimiser: str, searched: set[str], objective: str
) -> None:
    cfg = composed(experiment)
    assert (cfg.model.name, cfg.model.freeze) == (model, freeze)
    assert cfg.optim._target_.endswith(f".{optimiser}")
    assert set(cfg.search.space) == searched
    assert cfg.search.objective == objective
    for rule in ("VanishingGradient", "Overfit", "Overtraining", "PoorWeightInitialization", "LossNotDecreasing"):
        assert rule in cfg.debug.rules
    assert "LowGPUUtilization" in cfg.debug.profile_rules


def test_heads_and_pictures_are_the_reference_systems() -> None:
    cifar, b2, dogs, bins, caltech = (
        plain(composed(name))
        for name in (
            "cifar10_resnet50",
            "dogbreeds_efficientnet_b2",
            "dogbreeds_resnet50",
            "bin_counts",
            "caltech256_resnet18",
        )
    )
    assert cifar["model"]["head"]["hidden"] == [1000, 100]
    assert dogs["model"]["head"]["hidden"] == [128]
    assert b2["data"]["normalization"] == "dataset"
    assert caltech["data"]["clutter"] is True
    assert bins["data"]["augment"]["crop"] is None
    assert bins["data"]["fit"] == "pad", "nothing that counts is cut off"


def test_an_override_beats_the_recipe() -> None:
    cfg = compose(["experiment=cifar10_resnet50", "model=resnet18", "head=linear", "trainer.max_epochs=3"])
    assert (cfg.model.name, cfg.trainer.max_epochs, cfg.model.freeze) == ("resnet18", 3, "backbone")


@pytest.mark.parametrize("experiment", RECIPES)
def test_every_recipe_composes_and_is_on_the_page(experiment: str) -> None:
    composed(experiment)
    assert f"experiment={experiment}" in PAGE
