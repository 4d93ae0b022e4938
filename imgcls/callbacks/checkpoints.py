"""Checkpoints that survive a kill at any moment and load without unpickling."""

from __future__ import annotations

import copy
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from imgcls.data.loader import EvaluationPlan
from imgcls.errors import UserError
from imgcls.system.interrupts import Interrupted, StopSignals
from imgcls.system.lightning_internals import batches_begun, checkpoint_of_weights, is_last_batch, is_within_step

LAST, BEST = "last.ckpt", "best.ckpt"
MEMBERS = 5
BATCHES_BETWEEN_LOOKS = 10  # of several processes at the signals and clocks of each other, for which a GPU's host waits


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` (after every epoch, and when a signal stops the run) and `best.ckpt` (weights only).

    Args:
        folder: folder of the files.
        monitor: the validation metric that selects the best epoch.
        mode: 'max' or 'min'.
        top_k: number of best epochs to keep; more than one adds files `epoch_N.ckpt`.
        average: 'greedy' averages the best epochs after the training, at least MEMBERS of which are then kept; see
            imgcls.training.soup. 'start' mixes the last one with the start; see imgcls.training.mixture.
        every_minutes: also write `last.ckpt` within an epoch, at most this often.
        rest_seconds: least time between two `last.ckpt`, except after the last epoch. An epoch within this time writes
            nothing, and its weights stay in memory if they are the best. Ignored with several processes.
        in_background: read by the trainer's builder; see imgcls.training.checkpoint_io.
        stop: the signals that end the training; checked after each optimiser step.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str = "val/accuracy",
        mode: str = "max",
        top_k: int = 1,
        average: str = "none",
        every_minutes: float | None = None,
        rest_seconds: float = 0.0,
        in_background: bool | str = False,
        stop: StopSignals | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.last, self.best = self.folder / LAST, self.folder / BEST
        self.monitor, self.mode, self.top_k, self.every_minutes = monitor, mode, top_k, every_minutes
        self.rest_seconds, self.average = rest_seconds, average
        if average == "greedy":
            self.top_k = max(top_k, MEMBERS)
        self.stop = stop or StopSignals()
        self.best_epochs: list[tuple[float, int]] = []  # (value, epoch), best first
        self.stopped_early = False
        self._unwritten: dict[str, Any] | None = None  # the best weights, if best.ckpt does not hold them yet
        self._validated = False
        self._written_at = time.monotonic()
        self._look = 0

    @property
    def best_epoch(self) -> int | None:
        return self.best_epochs[0][1] if self.best_epochs else None

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [list(pair) for pair in self.best_epochs], "stopped_early": self.stopped_early}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_epochs = [(float(value), int(epoch)) for value, epoch in state_dict["kept"]]
        self.stopped_early = bool(state_dict["stopped_early"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.install()  # Lightning has just put its own handlers in place
        self.stop.deferred = True
        if self.stopped_early:  # the run was killed after early stopping, before its test
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if is_within_step(trainer) or is_last_batch(trainer):
            return  # in the middle of an optimiser step, or right before the validation that ends the epoch
        if trainer.world_size > 1:
            look = batches_begun(trainer) // BATCHES_BETWEEN_LOOKS
            if look == self._look:
                return
            self._look = look
        due = self.every_minutes is not None and time.monotonic() - self._written_at > 60 * self.every_minutes
        if self._any_process(trainer, due or self.stop.requested is not None):
            self.save_last(trainer)
            self.stop_together(trainer)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.world_size == 1:
            self.stop.raise_if_requested()  # last.ckpt holds the previous epoch
        elif (batch_idx + 1) % BATCHES_BETWEEN_LOOKS == 0 and batch_idx < _common_batches(trainer):
            self.stop_together(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopped_early = trainer.should_stop
        if self._validated:
            self._validated = False
            self._keep_if_best(trainer)
        if self._any_process(trainer, self.stop.requested is not None) or not self._may_rest(trainer):
            self.save_last(trainer)
            self.stop_together(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write_best(trainer)  # a limit of steps or time may have ended the training
        self.stop.deferred = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.stop.deferred = False

    def stop_together(self, trainer: L.Trainer) -> None:
        """Raise Interrupted in all processes if one of them has received a signal."""
        if not self._any_process(trainer, self.stop.requested is not None):
            return
        interrupted = Interrupted(self.stop.requested or signal.SIGTERM)
        if not trainer.is_global_zero:
            interrupted.exit_code = 0  # torchrun ends the first process, which records the end, when another one fails
        raise interrupted

    def _may_rest(self, trainer: L.Trainer) -> bool:
        """Whether this epoch may skip its checkpoints."""
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        resting = time.monotonic() - self._written_at < self.rest_seconds and self.last.is_file()
        return resting and not ends and trainer.world_size == 1

    def _write_best(self, trainer: L.Trainer) -> None:
        """Write the best weights if they are only in memory; always before `last.ckpt`, which relies on them."""
        if self._unwritten is not None:
            trainer.strategy.save_checkpoint(self._unwritten, self.best)
            self._unwritten = None

    def save_last(self, trainer: L.Trainer) -> None:
        """Write `last.ckpt`: everything needed to resume."""
        self._write_best(trainer)
        trainer.save_checkpoint(self.last, weights_only=False)  # unset, Lightning says so each time
        self._written_at = time.monotonic()

    def _keep_if_best(self, trainer: L.Trainer) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            raise UserError(f"checkpoint.monitor={self.monitor}: this run only has the metrics {', '.join(known)}.")
        value, epoch = float(trainer.callback_metrics[self.monitor]), trainer.current_epoch
        better_first = sorted([*self.best_epochs, (value, epoch)], key=self._rank)
        self.best_epochs = better_first[: self.top_k]
        if (value, epoch) not in self.best_epochs:
            return
        if self.top_k > 1:
            trainer.save_checkpoint(self.epoch_file(epoch), weights_only=True)
            if trainer.is_global_zero:
                for _, dropped in better_first[self.top_k :]:
                    self.epoch_file(dropped).unlink(missing_ok=True)
        if self.best_epochs[0] == (value, epoch):
            if self._may_rest(trainer):
                self._unwritten = copy.deepcopy(checkpoint_of_weights(trainer))
            else:
                self._unwritten = None
                trainer.save_checkpoint(self.best, weights_only=True)

    def _rank(self, pair: tuple[float, int]) -> tuple[bool, float, int]:
        value, epoch = pair
        # NaN last; of equal epochs the later one, whose learning rate was lower
        return (value != value, -value if self.mode == "max" else value, -epoch)

    def epoch_file(self, epoch: int) -> Path:
        """The file of one of several best epochs; `epoch` is counted from 0, its name from 1."""
        earlier = self.folder / f"epoch={epoch}.ckpt"  # of a run that an earlier version began
        return earlier if earlier.is_file() else self.folder / f"epoch_{epoch + 1}.ckpt"

    @staticmethod
    def _any_process(trainer: L.Trainer, answer: bool) -> bool:
        """Whether any process has this `answer`; all of them must ask."""
        return answer if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(answer, all=False)


def _common_batches(trainer: L.Trainer) -> int:
    """Number of validation batches that every process has: the last one is not in all, and must not ask the others."""
    plan = getattr(trainer.val_dataloaders, "plan", None)
    return plan.common if isinstance(plan, EvaluationPlan) else 0
