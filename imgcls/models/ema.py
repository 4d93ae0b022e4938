"""Exponential moving average of the weights, used by validation and saved in checkpoints.

Lightning's own EMAWeightAveraging leaves the averaged weights out of checkpoints that are saved with
`weights_only=True` (it does not call callbacks for those), averages all other buffers of the module, and also swaps
weights in a later `trainer.validate(ckpt_path=…)`; this one does none of that.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import nn

AVERAGED = "state_dict"  # read from a checkpoint by everyone except a resumed training
CURRENT = "current_state_dict"


class Average:
    """A second copy of a network's state: floating-point values are averaged, others are those of the last step.

    Batch-norm statistics are averaged with the weights that they belong to.

    Args:
        network: the network whose weights are averaged.
        decay: share of the average that each step keeps; at most (1 + step) / (10 + step), so that a short training
            does not end with an average of its random initialisation.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.shadow = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self.swapped = False
        """Whether the network currently has the average, and `shadow` the trained weights."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimiser step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, latest = [], []
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                averaged.append(self.shadow[name])
                latest.append(value)
            else:
                self.shadow[name].copy_(value)
        torch._foreach_lerp_(averaged, latest, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights of the network and the average."""
        for name, value in self.network.state_dict().items():
            previous = value.clone()
            value.copy_(self.shadow[name])
            self.shadow[name].copy_(previous)
        self.swapped = not self.swapped

    def on_save_checkpoint(self, checkpoint: dict[str, Any], prefix: str) -> None:
        """Store the average where readers expect the weights, and the trained weights beside it."""
        live = {name: value for name, value in checkpoint[AVERAGED].items() if name.startswith(prefix)}
        shadow = {f"{prefix}{name}": value for name, value in self.shadow.items()}
        average, current = (live, shadow) if self.swapped else (shadow, live)
        checkpoint[AVERAGED] = {**checkpoint[AVERAGED], **average}
        checkpoint[CURRENT] = current

    @torch.no_grad()
    def on_load_checkpoint(self, checkpoint: dict[str, Any], prefix: str) -> None:
        """Restore the average of a checkpoint, and put the trained weights where the caller reads them."""
        for name, value in self.shadow.items():
            value.copy_(checkpoint[AVERAGED][f"{prefix}{name}"])
        checkpoint[AVERAGED] = {**checkpoint[AVERAGED], **checkpoint.get(CURRENT, {})}


class WeightAveraging(L.Callback):
    """Average the weights of a Classifier over its optimiser steps; validate and save the average.

    In checkpoints `state_dict` is the average; the weights from which a training resumes are beside it. After the
    training the module has the average.

    Args:
        decay: see Average; 0.999 suits a few thousand steps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be at least 0 and less than 1.")
        self.decay = decay
        self._step = 0

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            pl_module.average = Average(pl_module.network, self.decay)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        average: Average = pl_module.average
        average.shadow = {name: value.to(pl_module.device) for name, value in average.shadow.items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step > self._step:  # not after a micro-batch that ends no optimiser step
            self._step = trainer.global_step
            pl_module.average.update(self._step)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._use_average(trainer, pl_module.average, use=True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._use_average(trainer, pl_module.average, use=False)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._use_average(trainer, pl_module.average, use=True)

    def _use_average(self, trainer: L.Trainer, average: Average, *, use: bool) -> None:
        if trainer.state.fn == "fit" and average.swapped != use:
            average.swap()
