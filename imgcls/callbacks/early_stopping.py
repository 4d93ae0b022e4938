"""Early stopping that lets a learning-rate schedule anneal first."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from imgcls.models.schedules import SCHEDULES

log = logging.getLogger(__name__)

ANNEALED = 0.05  # of the peak learning rate; below it a schedule gains little more


class EarlyStopping(LightningEarlyStopping):
    """End the training when `monitor` has not improved for `patience` validations.

    A cosine or one-cycle schedule gains most while it anneals, so unless `cut_schedule` is true, the training continues
    until the learning rate has fallen below a twentieth of its peak.
    """

    def __init__(self, monitor: str = "val/loss", *, cut_schedule: bool = False, **options: Any) -> None:
        super().__init__(monitor, check_on_train_epoch_end=False, verbose=False, **options)
        self.cut_schedule = cut_schedule
        self._peak = 0.0
        self._logged_waiting = False

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "peak": self._peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._peak = state_dict["peak"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "peak"})

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._peak = max(self._peak, trainer.optimizers[0].param_groups[-1]["lr"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        before = trainer.should_stop
        super().on_validation_end(trainer, pl_module)
        if before or not trainer.should_stop:
            return
        rate = trainer.optimizers[0].param_groups[-1]["lr"]
        anneals = pl_module.optim.schedule in SCHEDULES and pl_module.optim.schedule != "constant"
        if self.cut_schedule or not anneals or rate <= ANNEALED * self._peak:
            log.info("Early stopping: %s has not improved for %d validations.", self.monitor, self.patience)
            return
        trainer.should_stop = False
        if not self._logged_waiting:
            self._logged_waiting = True
            log.info("%s no longer improves; training continues until the learning rate has annealed.", self.monitor)
