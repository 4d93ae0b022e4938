"""The recipes for CIFAR-10 from random weights, in small: whole runs on generated images in CIFAR-10's own files."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest

import imgcls
from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.data.cifar10 import BATCHES, BINARY
from imgcls.errors import UserError
from imgcls.runs.run import Run
from imgcls.system.interrupts import Interrupted

SMALL = [
    "model.options={widths: [8, 16, 16]}",
    "data.batch_size=64",
    "trainer.max_epochs=8",
    "trainer.accelerator=cpu",
    "export.onnx=false",
    "debug.profile=false",
]
RATES = {"cifar10_fast": "optim.other_lr=0.14", "cifar10_accurate": "optim.lr=1.5"}
"""For batches of 64; the recipes' are for 2,000 and 1,024."""
ROWS = 60  # images of a batch file

Fit = Callable[..., Run]


def write_cifar10(root: Path) -> Path:
    """Images of 32 px, ten classes that differ in where they are bright and in colour."""
    rng = np.random.default_rng(0)
    folder = root / BINARY
    folder.mkdir(parents=True)
    for name in (name for names in BATCHES.values() for name in names):
        labels = rng.permutation(np.arange(ROWS) % 10).astype(np.uint8)
        planes = rng.integers(0, 120, (ROWS, 3, 32, 32), dtype=np.uint8)
        for row, label in enumerate(labels):
            planes[row, label % 3, 6 * (label // 2) : 6 * (label // 2) + 8] += 130
        (folder / f"{name}.bin").write_bytes(np.hstack([labels[:, None], planes.reshape(ROWS, -1)]).tobytes())
    return root


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    root = write_cifar10(tmp_path / "pictures")

    def run(*overrides: str, name: str = "run") -> Run:
        place = [f"data.root={root}", f"run_dir={tmp_path / name}"]
        return imgcls.fit(imgcls.compose([*overrides, *SMALL, *place]))

    return run


@pytest.mark.parametrize("recipe", ["cifar10_fast", "cifar10_accurate"])
def test_a_recipe_trains_from_its_name_to_a_report(fit: Fit, recipe: str) -> None:
    run = fit(f"experiment={recipe}", RATES[recipe])
    assert run.status["state"] == "finished"
    assert (run.folder / "report.html").is_file()
    assert run.metrics["test/accuracy"] > 0.5  # chance is 0.1
    assert len(run.predictions) == ROWS
    assert [row["step"] for row in run.history] == list(range(4, 33, 4))  # all images train, none validate
    assert not any(name.startswith("val/") for name in run.metrics)
    description = run.model.description["architecture"]
    views = {"cifar10_fast": "flip_shift", "cifar10_accurate": "where_unsure"}[recipe]
    assert (description["views"], description["options"]) == (views, {"widths": [8, 16, 16]})
    pictures = run_pictures(run)
    answers = run.predict(pictures, top_k=1)
    assert [answer[0][0] for answer in answers] == [row["predicted"] for row in run.predictions]


def run_pictures(run: Run) -> list[np.ndarray]:
    from imgcls.data.cifar10 import find_cifar10

    test = find_cifar10(Path(run.config.data.root) / BINARY).test
    assert test is not None
    return list(test.pictures)


@pytest.mark.parametrize("name", ["cifar10_fast", "cifar10_accurate"])
def test_a_recipe_stopped_in_the_middle_goes_on_to_the_same_bits(
    name: str, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that changes during it: the slow weights, the first bias that stops training, flips that alternate."""
    more = ["optim.lookahead.every=2"] if name == "cifar10_accurate" else []
    recipe = [f"experiment={name}", RATES[name], *more, "report=false"]
    whole = fit(*recipe, name="whole")
    original = Checkpoints.on_train_batch_end

    def signalled(self: Checkpoints, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 14:  # within the fourth epoch, in which the bias no longer trains
            signal.raise_signal(signal.SIGTERM)
        original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", signalled)
        with pytest.raises(Interrupted):
            fit(*recipe, name="stopped")
    resumed = fit(*recipe, name="stopped")
    assert resumed.status["resumed"] == 1
    weights = [(run.folder / "model" / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optim=adamw"], r"optim\.decoupled"),
        (["optim.lr=auto"], r"optim\.decoupled=false"),
        (["model.views=flips"], "flip"),
        (["model.options=3"], "names and values"),
    ],
)
def test_what_does_not_go_with_a_recipe_is_told(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        imgcls.compose(["experiment=cifar10_accurate", *words])
