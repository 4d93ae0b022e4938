"""The small training that most tests do, and a fixture that does it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imgcls.runs.run import Run

SMALL = [
    "data=imagefolder",
    "model.name=test_resnet",
    "model.pretrained=false",
    "data.image_size=24",
    "data.resize=24",
    "data.batch_size=16",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "export.onnx=false",
    "report=false",
]
"""The overrides of a training of a second, on a folder of images: `data.root` is left to the test."""

DIGITS = ["data=digits", "model.name=test_resnet", "export.onnx=false", "debug=off", "trainer.accelerator=cpu"]
"""The same on images that every machine has."""

Fit = Callable[..., "Run"]


@pytest.fixture
def fit(tmp_path: Path, pictures: Path) -> Fit:
    """Fit the small training on `pictures` with further overrides, in the folder `name`."""
    import imgcls

    def run(*overrides: str, name: str = "run") -> Run:
        return imgcls.fit(imgcls.compose([*SMALL, f"data.root={pictures}", f"run_dir={tmp_path / name}", *overrides]))

    return run


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a training with `trainer.devices=2` are forked from this one, which has imported everything.

    Those of `test_no_process_survives_a_killed_parent` are started as they are for users; so are all of a machine with
    a GPU, for which torch has threads that a forked process lacks.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    from tests.processes import ForkedWorker

    def popen(self: SubprocessHandler, command: Sequence[str], variables: Mapping[str, str]) -> ForkedWorker:
        return ForkedWorker(command, variables)

    if not torch.cuda.is_available():
        monkeypatch.setattr(SubprocessHandler, "_popen", popen)


def compose_with(patch: pytest.MonkeyPatch, more: list[str]) -> None:
    """Whatever is composed from now on has these overrides too, last."""
    from imgcls.config.composition import compose
    from imgcls.config.overrides import Options, as_overrides

    def composed(words: Options = (), **options: Any) -> DictConfig:
        return compose([*as_overrides(words), *more], **options)

    for where in ("imgcls.config.compose", "imgcls.config.composition.compose"):
        patch.setattr(where, composed)


@contextmanager
def stopped_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> Iterator[None]:
    """The training inside gets SIGTERM after the batch with this number, and ends as interrupted."""
    from imgcls.callbacks.checkpoints import Checkpoints
    from imgcls.system.interrupts import Interrupted
    from imgcls.system.lightning_internals import batch_number

    original = Checkpoints.on_train_batch_end

    def signalled(self: Checkpoints, trainer: Any, *args: Any) -> None:
        if batch_number(trainer) == batch:
            signal.raise_signal(signal.SIGTERM)
        original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", signalled)
        with pytest.raises(Interrupted):
            yield
