"""What smdebug reads back is what the optimiser used; these tests run if the extra `debugger` is installed."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest

from imgcls.debug.smdebug_callback import SMDebug
from imgcls.errors import UserError
from imgcls.models.ema import WeightAveraging
from imgcls.system import extras
from imgcls.system.extras import check_smdebug
from tests.debug.trainings import healthy_backbone, train
from tests.processes import Forked

SUPPORTED_NUMPY = tuple(map(int, version("numpy").split(".")[:2])) < (2, 3)
needs_smdebug = pytest.mark.skipif(
    importlib.util.find_spec("smdebug") is None or not SUPPORTED_NUMPY, reason="needs the extra `debugger`"
)


class SaveGradients(L.Callback):
    """Saves the gradients of each optimiser step."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.gradients: list[np.ndarray] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append(pl_module.network.head.weight.grad.float().numpy().copy())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            np.save(self.file, np.stack(self.gradients))


def test_without_smdebug_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras.sys, "version_info", (3, 12))
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'imgcls\[debugger\]'"):
        check_smdebug()
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.3.0")
    with pytest.raises(UserError, match=r"numpy 2\.3\.0, only below 2\.3"):
        check_smdebug()
    monkeypatch.setattr(extras.sys, "version_info", (3, 13))
    with pytest.raises(UserError, match=r"Python 3\.11 or 3\.12"):
        check_smdebug()


@needs_smdebug
@pytest.mark.parametrize("kind", ["plain", "bf16", "accumulated", "compiled", "ema", "two processes"])
def test_gradients_are_those_of_the_optimiser(kind: str, tmp_path: Path) -> None:
    from smdebug import modes
    from smdebug.trials import create_trial

    backbone, used = healthy_backbone(), SaveGradients(tmp_path / "used.npy")
    options: dict[str, Any] = {
        "bf16": {"precision": "bf16-mixed"},
        "accumulated": {"accumulate_grad_batches": 5},
        "two processes": {"strategy": Forked(), "devices": 2},
    }.get(kind, {})
    averaging = (WeightAveraging(decay=0.9),) if kind == "ema" else ()
    if kind == "compiled":
        backbone.compile(backend="eager")
    callbacks = (*averaging, used, SMDebug(tmp_path / "trial", every=2))
    train(tmp_path, backbone, epochs=2, callbacks=callbacks, **options)
    gradients = np.load(used.file)

    trial = create_trial(str(tmp_path / "trial"))
    steps = trial.steps(mode=modes.TRAIN)
    assert steps == list(range(0, len(gradients), 2))
    assert trial.steps(mode=modes.EVAL) == ([0] if kind == "two processes" else [0, 2])  # of 2 batches, or of 4
    saved = trial.tensor("gradient/Network_head.weight")
    for step in steps:
        np.testing.assert_array_equal(saved.value(step, mode=modes.TRAIN), gradients[step])
    for mode in (modes.TRAIN, modes.EVAL):
        assert trial.tensor_names(collection="losses", mode=mode)
    assert any(name.endswith("head.bias") for name in trial.tensor_names(collection="biases"))


def test_the_constraints_of_the_extra_follow_the_others() -> None:
    root = Path(__file__).parents[2]
    ours, theirs = (
        dict(line.split("==") for line in (root / name).read_text().splitlines() if "==" in line)
        for name in ("constraints.txt", "constraints-debugger.txt")
    )
    assert {name for name in ours if name in theirs and ours[name] != theirs[name]} == {"numpy"}
    assert set(theirs) - set(ours) == {"smdebug", "protobuf", "pandas", "requests"}
