"""How fast a run trained, and how much of that time it waited for pictures."""

from __future__ import annotations

import time
from typing import Any

import lightning as L


class Timing(L.Callback):
    """Measures training time, images and the wait for data, by the host's clock and without a synchronisation.

    The wait is the gap from the end of one training batch to the start of the next, which agrees with Lightning's
    own profile of the loader to a hundredth.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.waited = 0.0
        self._mark = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "seconds": self.seconds, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images, self.seconds, self.waited = (state_dict[name] for name in ("images", "seconds", "waited"))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.waited += now - self._mark
        self.seconds += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.seconds += now - self._mark
        self.images += len(batch[0]) * trainer.world_size
        self._mark = now

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.monotonic()

    def summary(self) -> dict[str, float]:
        """`images_per_second` of training, `training_seconds` and `data_wait_fraction` (0 to 1)."""
        return {
            "images_per_second": round(self.images / self.seconds, 2) if self.seconds else 0.0,
            "training_seconds": round(self.seconds, 3),
            "data_wait_fraction": round(self.waited / self.seconds, 4) if self.seconds else 0.0,
        }
