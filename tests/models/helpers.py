"""A network of a few thousand parameters, batches from memory, and a trainer that prints nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from imgcls.models.network import Network
from imgcls.models.optim import SGD
from imgcls.system.lightning_internals import is_last_batch

CLASSES = 7


def network(name: str = "test_resnet", num_classes: int = CLASSES, seed: int = 0, **options: Any) -> Network:
    torch.manual_seed(seed)
    return create_network(name, num_classes, **options)


def classifier(
    name: str = "test_resnet", *, seed: int = 0, options: dict[str, Any] | None = None, **more: Any
) -> Classifier:
    more.setdefault("optim", SGD(lr=0.05, weight_decay=0.1, schedule="constant"))
    return Classifier(network(name, seed=seed, **(options or {})), **more)


def pictures(count: int, classes: int = CLASSES, side: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return torch.randn(count, 3, side, side, generator=generator) + labels[:, None, None, None] / classes, labels


class Loader:
    """Batches of given sizes in order, with their index; resumes at the position in a checkpoint."""

    def __init__(self, images: Tensor, labels: Tensor, sizes: list[int]) -> None:
        self.images, self.labels, self.sizes = images, labels, sizes
        self.position = 0

    @classmethod
    def of(cls, count: int, batch_size: int, **options: Any) -> Loader:
        images, labels = pictures(count, **options)
        return cls(images, labels, [len(part) for part in labels.split(batch_size)])

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        start, self.position = self.position, 0
        index = torch.arange(len(self.labels)).split(self.sizes)
        for number in range(start, len(self.sizes)):
            self.position = number + 1 if number + 1 < len(self.sizes) else 0
            part = index[number]
            yield self.images[part], self.labels[part], part

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def trainer(epochs: int = 1, callbacks: list[L.Callback] | None = None, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks or []),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return L.Trainer(max_epochs=epochs, callbacks=callbacks, **(quiet | options))


class KilledError(Exception):
    """Interrupts a training in a test."""


class SaveAndKill(Checkpoint):
    """Write a checkpoint after optimiser step `step`, or after the epoch that it ends, and stop there."""

    def __init__(self, step: int, file: Any) -> None:
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if not is_last_batch(trainer):
            self.on_train_epoch_end(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file, weights_only=False)
            raise KilledError
