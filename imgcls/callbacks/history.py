"""One row per epoch: `metrics.csv`, and the line that other programs parse."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from imgcls.runs.reading import from_one
from imgcls.system.files import atomic_write_text
from imgcls.system.tables import as_csv

Row = dict[str, float | int]
Announce = Callable[[Sequence[Row]], None]
"""Takes the rows of all epochs so far; the last one is new."""


class History(Checkpoint):
    """Collects the metrics of each epoch, writes `metrics.csv` and passes the rows to `announce`.

    Rows count epochs from 1, Lightning from 0. They are part of the checkpoint, so the file of a resumed run holds each
    epoch once. It is a Checkpoint for Lightning only so that it runs after every metric of the epoch is known, and
    before the real checkpoint.
    """

    def __init__(self, file: Path, announce: Announce | None = None) -> None:
        self.file = Path(file)
        self.rows: list[Row] = []
        self._announce = announce
        self._epoch_began = time.monotonic()
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = from_one([dict(row) for row in state_dict["rows"]])

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_began = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row: Row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row["lr"] = float(trainer.optimizers[0].param_groups[-1]["lr"])
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if "/" in name}
        # Lightning keeps the values of the last validation: an epoch without one has none.
        row.update({name: value for name, value in metrics.items() if self._validated or not name.startswith("val/")})
        self._validated = False
        row["seconds"] = round(time.monotonic() - self._epoch_began, 3)
        self.rows = [*(row for row in self.rows if row["epoch"] <= trainer.current_epoch), row]
        if trainer.is_global_zero:
            atomic_write_text(self.file, as_csv(self.rows))
            if self._announce is not None:
                self._announce(self.rows)


def metric_line(row: Mapping[str, float | int]) -> str:
    """The line of an epoch: `imgcls epoch=3 train/loss=0.41 val/accuracy=0.9312 …`, for SageMaker's metric regexes.

    >>> metric_line({"epoch": 3, "step": 120, "lr": 0.01, "val/accuracy": 0.93125, "seconds": 2.5})
    'imgcls epoch=3 lr=0.01 val/accuracy=0.93125 seconds=2.5'
    """
    return "imgcls " + " ".join(f"{name}={value:.6g}" for name, value in row.items() if name != "step")
