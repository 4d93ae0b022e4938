"""Reports a trial to the study after each epoch, and stops it where the pruner says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lightning as L

from imgcls.models.schedules import Schedule
from imgcls.sweeps.options import PRUNED
from imgcls.sweeps.optuna_internals import id_of_number, open_trial
from imgcls.system.files import atomic_write_text

log = logging.getLogger(__name__)


class Pruning(L.Callback):
    """Reports the validation metric of a trial after each epoch, and stops a training that is not promising.

    So that the comparison predicts the end of the training:

    - The learning-rate schedule is that of a whole training.
    - Trials are compared at the same point of it. Where they differ in their number of epochs, they report at the same
      fractions: with 5 epochs after each, with 20 after every fourth.
    - No trial is stopped while its learning rate still rises, nor after its last epoch, where it would save nothing.

    Args:
        folder: the run folder; the reason for stopping is written to `debug/stopped.json` there.
        storage: the address of the study's storage.
        study: its name.
        number: of the trial.
        monitor: the metric that is compared, such as `val/accuracy`.
        pruner: Optuna's pruner.
        reports: how often a trial reports in the whole training; None: after each epoch.
    """

    def __init__(
        self,
        folder: str | Path,
        storage: str,
        study: str,
        number: int,
        monitor: str,
        pruner: Any,
        reports: int | None = None,
    ) -> None:
        self.file = Path(folder) / "debug" / "stopped.json"
        self.storage, self.study, self.number = storage, study, number
        self.monitor, self.pruner, self.reports = monitor, pruner, reports
        self._trial: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop again after a kill between the decision and the end of the run."""
        if self.file.is_file() and json.loads(self.file.read_text(encoding="utf-8"))["rule"] == PRUNED:
            trainer.should_stop = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report, and stop if the pruner says so."""
        if trainer.sanity_checking or self.monitor not in trainer.callback_metrics:
            return
        end = False
        if trainer.is_global_zero:
            optim: Any = pl_module.optim
            value = float(trainer.callback_metrics[self.monitor])
            end = self.is_hopeless(trainer.current_epoch + 1, trainer.max_epochs or -1, value, optim)
        if trainer.world_size > 1:
            end = trainer.strategy.broadcast(end)
        if end:
            trainer.should_stop = True

    def is_hopeless(self, epoch: int, epochs: int, value: float, optim: Any) -> bool:
        """Report `value` after `epoch` (from 1) of `epochs` (-1: endless); whether the pruner gives it up.

        `optim` has the schedule of the learning rate; None where the epochs are the folds of a cross-validation.
        """
        step = report_step(epoch, epochs, self.reports)
        try:
            trial = self._open()
            last = max(trial.study.get_trials(deepcopy=False)[self.number].intermediate_values, default=0)
            if step > last:
                trial.report(value, step)
            hopeless = 0 < step >= last and _can_be_judged(epoch, epochs, optim) and trial.should_prune()
        except Exception as error:  # an unreachable storage is no reason to lose the training
            log.warning("Epoch %d could not be reported to the study: %s", epoch, error)
            return False
        if hopeless:
            name = type(self.pruner).__name__.removesuffix("Pruner")
            unit = "epochs" if optim is not None else "folds"
            sentence = f"{self.monitor} is {value:.4g} after {epoch} of {epochs} {unit}, which {name} prunes"
            atomic_write_text(self.file, json.dumps({"rule": PRUNED, "sentence": sentence}) + "\n")
            log.info("This trial is pruned: %s.", sentence)
        return bool(hopeless)

    def _open(self) -> Any:
        if self._trial is None:
            from imgcls.sweeps.storage import need_optuna, open_storage

            optuna = need_optuna()
            study = optuna.load_study(
                study_name=self.study,
                storage=open_storage(self.storage),
                sampler=optuna.samplers.RandomSampler(0),
                pruner=self.pruner,
            )
            self._trial = open_trial(study, id_of_number(study, self.number))
        return self._trial


def report_step(epoch: int, epochs: int, reports: int | None) -> int:
    """The number of the report after `epoch` (from 1) of `epochs`, from 1; 0 where none is due yet.

    >>> [report_step(epoch, 20, 5) for epoch in (3, 4, 7, 8, 20)]
    [0, 1, 1, 2, 5]
    >>> [report_step(epoch, 3, 3) for epoch in (1, 2, 3)]
    [1, 2, 3]
    """
    return epoch if reports is None or epochs < 1 else epoch * reports // epochs


def _can_be_judged(epoch: int, epochs: int, optim: Any) -> bool:
    if optim is None or not isinstance(optim.schedule, str):
        return epoch != epochs
    rise = Schedule(optim.schedule, epochs if epochs > 0 else float("inf"), optim.warmup_epochs).rise
    return rise < epoch != epochs
