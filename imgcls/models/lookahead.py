"""Lookahead: every few steps the weights are reset to a slow average of themselves (Zhang et al. 2019)."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from imgcls.errors import UserError


class Lookahead(L.Callback):
    """Average the weights over the training, and continue from the average.

    Every `every` optimiser steps the average is updated with the weights, and the weights are set to the average. The
    share of the average that an update keeps grows from 0 to decay**every over the training, so that it moves fast at
    first and averages strongly at the end (Jordan 2024). Running statistics of norms are averaged with the weights. The
    training ends with the average.

    Args:
        every: optimiser steps between two updates of the average.
        decay: share of the average kept per step, at the end of the training.
        power: how late in the training that share grows: as (step / steps)**power.
        start_epoch: the first epoch in which weights are averaged.
    """

    def __init__(self, every: int = 5, decay: float = 0.95, power: float = 3.0, start_epoch: int = 0) -> None:
        if every < 1 or not 0 <= decay <= 1 or power < 0 or start_epoch < 0:
            raise UserError("optim.lookahead: every must be 1 or more, decay in 0..1, power and start_epoch 0 or more.")
        self.every, self.decay, self.power, self.start_epoch = every, decay, power, start_epoch
        self._slow: dict[str, Tensor] | None = None
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        return {} if self._slow is None else {"slow": self._slow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._slow = state_dict.get("slow")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if self._slow is not None:
            self._slow = {name: value.to(pl_module.device) for name, value in self._slow.items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        step = trainer.global_step
        if step == self._step:  # after a micro-batch that ends no optimiser step
            return
        self._step = step
        steps = trainer.estimated_stepping_batches
        last = step >= steps
        if trainer.current_epoch >= self.start_epoch and (step % self.every == 0 or last):
            self._average(pl_module.network, 1.0 if last else self.decay**self.every * (step / steps) ** self.power)

    @torch.no_grad()
    def _average(self, network: nn.Module, keep: float) -> None:
        fast = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
        if self._slow is None:
            self._slow = {name: value.detach().clone() for name, value in fast.items()}
            return
        slow = [self._slow[name] for name in fast]
        torch._foreach_lerp_(slow, list(fast.values()), 1 - keep)
        torch._foreach_copy_(list(fast.values()), slow)
