"""Checkpoints that survive a kill at any moment, and hold nothing that must be unpickled."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from imgcls.errors import UserError
from imgcls.system.interrupts import StopSignals
from imgcls.system.lightning_internals import batches_begun, checkpoint_of_weights, is_last_batch, is_within_step

LAST, BEST = "last.ckpt", "best.ckpt"


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` (after every epoch, and when a signal stops the run) and `best.ckpt` (weights only).

    Args:
        folder: where the files go.
        monitor: the validation metric that chooses the best epoch.
        mode: 'max' or 'min'.
        top_k: how many of the best epochs are kept; more than one adds files `epoch=N.ckpt`.
        every_minutes: also write `last.ckpt` within an epoch, at most this often.
        rest_seconds: so soon after a `last.ckpt` an epoch writes nothing, unless it is the last one; the best weights
            wait in memory. Several processes do not rest.
        in_background: read by the training, which writes files beside the steps (imgcls.training.checkpoint_io).
        stop: the signals that end the training; asked after each optimiser step.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str = "val/accuracy",
        mode: str = "max",
        top_k: int = 1,
        every_minutes: float | None = None,
        rest_seconds: float = 0.0,
        in_background: bool | str = False,
        stop: StopSignals | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.monitor, self.mode, self.top_k, self.every_minutes = monitor, mode, top_k, every_minutes
        self.rest_seconds = rest_seconds
        self.stop = stop or StopSignals()
        self.kept: list[tuple[float, int]] = []  # (value, epoch) of the epochs that are kept, best first
        self.stopped_early = False
        self._held: dict[str, Any] | None = None  # the best weights, where they are not in best.ckpt yet
        self._validated = False
        self._written_at = time.monotonic()

    @property
    def last(self) -> Path:
        return self.folder / LAST

    @property
    def best(self) -> Path:
        return self.folder / BEST

    @property
    def best_epoch(self) -> int | None:
        return self.kept[0][1] if self.kept else None

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [list(pair) for pair in self.kept], "stopped_early": self.stopped_early}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = [(float(value), int(epoch)) for value, epoch in state_dict["kept"]]
        self.stopped_early = bool(state_dict["stopped_early"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.install()  # Lightning has just put its own handlers in place
        self.stop.deferred = True
        if self.stopped_early:  # the run was killed after early stopping, before its test
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if is_within_step(trainer) or is_last_batch(trainer):
            return  # in the middle of an optimiser step, or right before the validation that ends the epoch
        due = self.every_minutes is not None and time.monotonic() - self._written_at > 60 * self.every_minutes
        if self._agree(trainer, self.stop.requested is not None, batches_begun(trainer)):
            self.save_last(trainer)
            self.stop.raise_if_requested()
        elif due and trainer.world_size == 1:
            self.save_last(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.world_size == 1:
            self.stop.raise_if_requested()  # the epoch before this one is in last.ckpt

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopped_early = trainer.should_stop
        if self._validated:
            self._validated = False
            self._keep_if_best(trainer)
        requested = self._agree(trainer, self.stop.requested is not None, 0)
        if requested or not self._may_rest(trainer):
            self.save_last(trainer)
        if requested:
            self.stop.raise_if_requested()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write_held(trainer)  # where a number of steps or a time has ended the training
        self.stop.deferred = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.stop.deferred = False

    def _may_rest(self, trainer: L.Trainer) -> bool:
        """Whether this epoch can do without checkpoints."""
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        resting = time.monotonic() - self._written_at < self.rest_seconds and self.last.is_file()
        return resting and not ends and trainer.world_size == 1

    def _write_held(self, trainer: L.Trainer) -> None:
        """Write the best weights that wait in memory; always before `last.ckpt`, which counts on them."""
        if self._held is not None:
            trainer.strategy.save_checkpoint(self._held, self.best)
            self._held = None

    def save_last(self, trainer: L.Trainer) -> None:
        """Write `last.ckpt`: all that is needed to go on."""
        self._write_held(trainer)
        trainer.save_checkpoint(self.last)
        self._written_at = time.monotonic()

    def _keep_if_best(self, trainer: L.Trainer) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            raise UserError(f"checkpoint.monitor={self.monitor}: this run has no such metric, only {', '.join(known)}.")
        value, epoch = float(trainer.callback_metrics[self.monitor]), trainer.current_epoch
        better_first = sorted([*self.kept, (value, epoch)], key=self._rank)
        self.kept = better_first[: self.top_k]
        if (value, epoch) not in self.kept:
            return
        if self.top_k > 1:
            trainer.save_checkpoint(self._epoch_file(epoch), weights_only=True)
            if trainer.is_global_zero:
                for _, dropped in better_first[self.top_k :]:
                    self._epoch_file(dropped).unlink(missing_ok=True)
        if self.kept[0] == (value, epoch):
            if self._may_rest(trainer):
                self._held = copy.deepcopy(checkpoint_of_weights(trainer))
            else:
                self._held = None
                trainer.save_checkpoint(self.best, weights_only=True)

    def _rank(self, pair: tuple[float, int]) -> tuple[bool, float, int]:
        value, epoch = pair
        return (value != value, -value if self.mode == "max" else value, epoch)  # NaN last; the earlier of equals

    def _epoch_file(self, epoch: int) -> Path:
        return self.folder / f"epoch={epoch}.ckpt"

    @staticmethod
    def _agree(trainer: L.Trainer, requested: bool, step: int) -> bool:
        """Whether any process was asked to stop; several processes ask each other every tenth step only."""
        if trainer.world_size == 1:
            return requested
        return step % 10 == 0 and trainer.strategy.reduce_boolean_decision(requested, all=False)
