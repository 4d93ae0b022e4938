"""The progress bar of a training, on a terminal or in a notebook."""

from __future__ import annotations

from typing import Any

import lightning as L
from tqdm.auto import tqdm

from imgcls.system.bars import is_watched
from imgcls.system.lightning_internals import batch_number


class ProgressBar(L.Callback):
    """One bar over all epochs, counted in images: rate, estimated time left, epoch and last validation accuracy.

    Nothing is drawn elsewhere; the metric lines report the progress there.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = is_watched() if enabled is None else enabled
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (self.enabled and trainer.is_global_zero):
            return
        epochs, batches = trainer.max_epochs or 0, int(trainer.num_training_batches)
        done = batch_number(trainer) + 1
        size = _images_per_batch(trainer)
        self._bar = tqdm(
            total=epochs * batches * size if epochs > 0 else None,
            initial=done * size,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            desc="training",
        )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        if self._bar is not None:
            self._bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)
            self._bar.update(len(batch[0]) * trainer.world_size)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None and "val/accuracy" in trainer.callback_metrics:
            self._bar.set_postfix_str(f"val/accuracy {float(trainer.callback_metrics['val/accuracy']):.4f}")

    def on_train_end(self, *args: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, *args: Any) -> None:
        self.on_train_end()


def _images_per_batch(trainer: L.Trainer) -> int:
    datamodule: Any = getattr(trainer, "datamodule", None)
    return round(getattr(datamodule, "expected_micro_batch", 1.0) * trainer.world_size) or 1
