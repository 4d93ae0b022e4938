"""Each choice of an option is known to the table of options and to the code that implements it, and to both alike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.config.choices import NORMALIZATIONS, ON_BAD, SAMPLERS, STORE_KINDS
from imgcls.config.options import OPTIONS, check_options
from imgcls.data.loader import TrainingPlan
from imgcls.data.sources import Split
from imgcls.data.stores.placement import open_store
from imgcls.data.stores.store import Recipe
from imgcls.data.synthetic import Synthetic
from imgcls.errors import UserError
from imgcls.images.preprocessing import INTERPOLATIONS, Preprocessing
from imgcls.models.backbones import create_network
from imgcls.models.choices import (
    ACTIVATIONS,
    FREEZING,
    MODES,
    MULTILABEL_METRICS,
    NORMS,
    STEMS,
    VALIDATION_METRICS,
    VIEWS,
)
from imgcls.models.classifier import Classifier
from imgcls.models.heads import Mlp
from imgcls.models.metrics import evaluation_metrics
from imgcls.models.schedules import SCHEDULES, Schedule

Use = Callable[[Any], Any]


def look_through(views: str) -> torch.Tensor:
    return create_network("test_resnet", 2, views=views).eval()(torch.rand(1, 3, 32, 32))


def resize(interpolation: str) -> np.ndarray:
    return Preprocessing(8, 8, interpolation).pixels(Image.new("RGB", (20, 10), (9, 9, 9)))


def open_pixels(kind: str, cache: Path) -> int:
    split = Split(("a", "b"), np.zeros(2), np.zeros((2, 16, 16, 3), dtype=np.uint8))
    return len(open_store(split, Recipe("centre", 8, 8, "bicubic"), kind, cache=cache))


def normalise(normalization: str) -> tuple[float, float, float]:
    return Synthetic(count=16, classes=2, image_size=8, resize=8, normalization=normalization).mean


CASES: dict[str, tuple[Iterable[str], Use]] = {
    "model.stem": (STEMS, lambda stem: create_network("test_resnet", 2, stem=stem)),
    "model.freeze": (FREEZING, lambda freeze: Classifier(create_network("test_resnet", 2), freeze=freeze)),
    "model.views": (VIEWS, look_through),
    "model.head.activation": (ACTIVATIONS, lambda activation: Mlp([3], activation=activation)(4, 2)),
    "model.head.norm": (NORMS, lambda norm: Mlp([3], norm=norm)(4, 2)),
    "optim.schedule": (SCHEDULES, lambda kind: Schedule(kind, steps=10)(3)),
    "data.interpolation": (INTERPOLATIONS, resize),
    "data.normalization": (NORMALIZATIONS, normalise),
    "data.store": (STORE_KINDS, lambda kind: Synthetic(store=kind)),
    "data.sampler": (SAMPLERS, lambda sampler: Synthetic(sampler=sampler)),
    "data.on_bad": (ON_BAD, lambda on_bad: Synthetic(on_bad=on_bad)),
}


@pytest.mark.parametrize("option", CASES)
def test_the_table_and_the_implementation_know_the_same(option: str) -> None:
    choices, use = CASES[option]
    for value in choices:
        assert OPTIONS[option](value) is None
        use(value)
    assert OPTIONS[option]("?") is not None
    with pytest.raises(UserError, match=r"\?") as refused:
        use("?")
    assert all(value in str(refused.value) for value in choices)  # and no others, where all are listed
    assert str(refused.value).partition("one of: ")[2].count(",") == len(list(choices)) - 1


@pytest.mark.parametrize("kind", STORE_KINDS)
def test_pixels_are_held_as_each_kind_says(kind: str, tmp_path: Path) -> None:
    assert open_pixels(kind, tmp_path) == 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_draws_an_epoch(sampler: str) -> None:
    positions, _ = TrainingPlan(np.array([0, 1, 1, 1]), 4, sampler=sampler).order(0)
    assert len(positions) == 4


def test_what_chooses_the_best_epoch_is_what_an_epoch_is_measured_by() -> None:
    assert {*evaluation_metrics(10, "val/"), *MULTILABEL_METRICS} == set(VALIDATION_METRICS)
    assert set(VALIDATION_METRICS.values()) == set(MODES)
    for option in ("checkpoint.monitor", "early_stopping.monitor"):
        section, name = option.split(".")
        for metric in [*VALIDATION_METRICS, "val/mine"]:
            task = "multilabel" if metric in MULTILABEL_METRICS else "auto"
            check_options(
                {"task": task, section: {name: metric}, "metrics": {"mine": {}}, "trainer": {"max_epochs": 1}}
            )
        with pytest.raises(UserError, match=f"{option}=val/mine"):
            check_options({section: {name: "val/mine"}, "trainer": {"max_epochs": 1}})


def test_choices_are_read_without_torch_and_hydra() -> None:
    program = (
        "import sys\n"
        "import imgcls.config.choices, imgcls.models.choices, imgcls.models.schedules, imgcls.images.preprocessing\n"
        "print({'torch', 'hydra', 'omegaconf'} & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
