"""Keeps the outputs of the last epoch's validation, which are often those that calibrate the model."""

from __future__ import annotations

from typing import Any

import lightning as L

from imgcls.models.metrics import Collector, Outputs


class LastValidation(L.Callback):
    """Collects the outputs for the validation images after the last of `max_epochs` epochs.

    Only of that one: of each, the copies would take longer than the one pass over the images that they can save.
    """

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._outputs: Outputs | None = None
        self._collector: Collector | None = None

    def outputs_after(self, epoch: int | None) -> Outputs | None:
        """The outputs of the network as `epoch`, counted from 0, has left it; None if they have not been kept."""
        return self._outputs if epoch is not None and epoch == self._epoch else None

    def on_train_batch_start(self, *args: Any) -> None:
        self._outputs = None  # of a validation within an epoch, after which the weights have changed

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._epoch, self._outputs, self._collector = trainer.current_epoch, None, None
        if not trainer.sanity_checking and trainer.current_epoch + 1 == trainer.max_epochs:
            self._collector = Collector(len(pl_module.class_names))

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        if self._collector is not None:
            index = batch[2] if len(batch) > 2 else None
            rank, processes = trainer.global_rank, trainer.world_size
            self._collector.add(index, outputs["logits"], batch[1], outputs["losses"], rank, processes)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._collector is not None:
            self._outputs = self._collector.gather(pl_module.device, trainer.world_size)
            self._collector = None
