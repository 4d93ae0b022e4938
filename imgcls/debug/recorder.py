"""Observes a training every n-th step and checks the rules on the observations."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from imgcls.callbacks.history import History
from imgcls.debug import storage
from imgcls.debug.activations import ActivationProbe
from imgcls.debug.observations import Observation, Record
from imgcls.debug.parameters import ParameterProbe
from imgcls.debug.rules import ISSUES, Outcome, Rule
from imgcls.debug.series import Series
from imgcls.debug.stalls import StallWatch
from imgcls.debug.tensor_rules import SaturatedActivation
from imgcls.debug.training_rules import StalledTraining
from imgcls.errors import UserError, nearest
from imgcls.system.files import atomic_write_text
from imgcls.system.lightning_internals import is_within_step

log = logging.getLogger(__name__)

FIRST_STEPS = 5  # always observed: what is wrong from the start shows here
MAX_PENDING = 20  # observations kept on the device, or in memory, before they are read and written
MAX_CHECK_SHARE = 0.01  # of the training time that rules and files may take within an epoch
DENSE = 500  # observations after each doubling of the steps, from twice as many on
READ_SECONDS = {"cpu": 0.0, "cuda": 10.0}  # least time between two checks; reading a device means waiting for it
PAUSE_SECONDS = 60.0  # a step that takes longer is recorded as a pause
STOPPED = "stopped.json"  # the rule that ended the training, and why


class Recorder(Checkpoint):
    """Records a training in the folder `debug` of a run (see `storage`), and writes `rules.json` there.

    Statistics are computed on the device, in the first process only. The rules are checked at the end of each epoch,
    and after an observed step as long as this takes no more than a hundredth of the time. Reading a GPU means waiting
    for it, so a GPU is read at most every ten seconds, and other devices once twenty observations are pending. However
    long the training is, there are a few thousand observations, and a look and its files take the time of the new
    steps. It is a Checkpoint for Lightning only so that it runs after the metrics of the epoch are known.

    Args:
        folder: `debug` in the run folder.
        every: observe each n-th optimiser step, and the first few; fewer from 1,000 on.
        rules: rules by name.
        warn: log what a rule finds immediately.
        stop_on: names of rules that end the training cleanly: it still validates, and the run continues with its test.
            They are checked after every observed step; with several processes only at the end of an epoch.
        class_counts: training images of each class.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int = 50,
        rules: Mapping[str, Rule] | None = None,
        warn: bool = True,
        stop_on: Sequence[str] = (),
        class_counts: Sequence[int] = (),
    ) -> None:
        self.folder, self.every, self.rules = folder, every, dict(rules or {})
        self.warn, self.stop_on, self.class_counts = warn, tuple(stop_on), tuple(class_counts)
        for name in self.stop_on:
            if name not in self.rules:
                raise UserError(f"debug.stop_on: unknown rule {name!r}. {nearest(name, self.rules)}")
        self.observations: list[Observation] = []
        self.losses, self.rates = Series(), Series()
        self.pauses: list[tuple[int, float]] = []
        self.stopped_by: str | None = None
        self.outcomes: dict[str, Outcome] = {}
        saturation = (rule for rule in self.rules.values() if isinstance(rule, SaturatedActivation))
        self._saturation = next(saturation, SaturatedActivation())
        self._stalled = next((rule for rule in self.rules.values() if isinstance(rule, StalledTraining)), None)
        self._watch: StallWatch | None = None
        self._history: Sequence[Mapping[str, float]] = ()
        self._class_results: tuple[tuple[int, int], ...] = ()
        self._pending: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._validated: tuple[Tensor, Tensor] | None = None
        self._activations: ActivationProbe | None = None
        self._parameters: ParameterProbe | None = None
        self._written = 0  # observations on disk
        self._steps_written = 0
        self._content = 0, 0, 0  # of the files on disk
        self._began = self._step_began = self._last_check = time.monotonic()
        self._check_seconds = 0.0

    @property
    def record(self) -> Record:
        """Everything that has been read from the device."""
        return Record(
            tuple(self.observations),
            self.losses,
            self.rates,
            tuple(self._history),
            self.class_counts,
            tuple(self.pauses),
            self._class_results,
        )

    # ---- Lightning's hooks

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "losses": torch.from_numpy(self.losses.numpy()),
            "rates": torch.from_numpy(self.rates.numpy()),
            "pauses": [list(pause) for pause in self.pauses],
            "recognised": [list(pair) for pair in self._class_results],
            "stopped_by": self.stopped_by,
        }

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.is_global_zero:
            self._write()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.rates = Series(state_dict["losses"].tolist()), Series(state_dict["rates"].tolist())
        self.pauses = [(int(step), float(seconds)) for step, seconds in state_dict["pauses"]]
        self._class_results = tuple((int(count), int(correct)) for count, correct in state_dict["recognised"])
        self.stopped_by = state_dict["stopped_by"]
        stored = storage.read_observations(self.folder)
        self.observations = [observation for observation in stored if observation.step < len(self.losses)]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = self._step_began = self._last_check = time.monotonic()
        if trainer.is_global_zero:
            storage.replace_observations(self.folder, self.observations)
            self._written, self._steps_written = len(self.observations), 0
            if self._stalled is not None:
                self._watch = StallWatch(self._stalled.threshold, self._report_stall)
                self._watch.alive(trainer.global_step)
                self._watch.start()
        if self.stopped_by is not None:  # the run was killed after a rule had stopped it, before its test
            trainer.should_stop = True
        elif trainer.is_global_zero:
            (self.folder / STOPPED).unlink(missing_ok=True)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._alive(trainer)
        step = trainer.global_step
        observed = step < FIRST_STEPS or step % self._interval(step) == 0
        if trainer.is_global_zero and observed and self._activations is None:
            self._activations = ActivationProbe(pl_module.network, batch[0], self._saturation)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        if self._activations is not None:
            self._parameters = ParameterProbe(pl_module.network)
        if trainer.is_global_zero:
            self.rates.append(max(float(group["lr"]) for group in optimizer.param_groups))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        if not trainer.is_global_zero or is_within_step(trainer):
            return
        loss: Tensor = pl_module.last_loss.detach()
        self._losses.append(loss)
        step = trainer.global_step - 1
        self._alive(trainer)
        due = self._note_pause(step)
        if self._activations is not None and self._parameters is not None:
            self._pending.append(
                {
                    "step": step,
                    "epoch": trainer.current_epoch,
                    "loss": loss,
                    "activations": self._activations.end(),
                    "parameters": self._parameters.end(),
                    "images": len(batch[0]),
                    "scaled": getattr(trainer.precision_plugin, "scaler", None) is not None,
                }
            )
            self._activations = self._parameters = None
            due = due or self._may_check(pl_module.device.type)
        if due:
            self._check_rules(trainer)
            trainer.should_stop = trainer.should_stop or (self._must_stop() and trainer.world_size == 1)
        if len(self._pending) + len(self.observations) - self._written >= MAX_PENDING:
            self._write(whole=self._affordable())

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._alive(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._alive(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics: Any = getattr(pl_module, "val_metrics", None)
        if trainer.is_global_zero and metrics is not None and "macro_f1" in metrics:
            counts = metrics["macro_f1"]  # of this process's share
            self._validated = (counts.tp + counts.fn).clone(), counts.tp.clone()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step_began = time.monotonic()
        self._alive(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step_began = time.monotonic()
        self._alive(trainer)
        stop = False
        if trainer.is_global_zero:
            self._check_rules(trainer)
            self._write()
            stop = self._must_stop()
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        trainer.should_stop = trainer.should_stop or stop

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end_watch()
        if trainer.is_global_zero:
            storage.write_outcomes(self.folder, self.outcomes.values())

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end_watch()
        if self._activations is not None:
            self._activations.end()
        self._activations = self._parameters = None
        if not trainer.is_global_zero or not (self.losses or self._losses):
            return
        try:  # the last observations matter most when a run fails; but a failed device cannot be read
            self._check_rules(trainer)
            self._write()
            storage.write_outcomes(self.folder, self.outcomes.values())
        except Exception as error:
            log.debug("The last observations are lost: %s", error)

    # ---- internals

    def _alive(self, trainer: L.Trainer) -> None:
        if self._watch is not None:
            self._watch.alive(trainer.global_step)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def _note_pause(self, step: int) -> bool:
        """Record a step that took long; return whether it counts as a stall."""
        now = time.monotonic()
        seconds, self._step_began = now - self._step_began, now
        limit = self._stalled.threshold if self._stalled is not None else math.inf
        if seconds > min(PAUSE_SECONDS, limit):
            self.pauses.append((step, round(seconds, 3)))
        return seconds > limit

    def _report_stall(self, step: int, seconds: float) -> None:
        """Called by the watching thread."""
        assert self._stalled is not None
        outcome = self._stalled.report_stall(step, seconds)
        self._warn(outcome)
        storage.write_rules(self.folder, {**self.outcomes, outcome.rule: outcome}.values())

    def _warn(self, outcome: Outcome) -> None:
        if self.warn:
            log.warning("%s: %s %s", outcome.rule, outcome.sentence, outcome.advice)

    def _interval(self, step: int) -> int:
        """Steps between two observations, at this step."""
        return self.every << max(0, (step // (DENSE * self.every)).bit_length() - 1)

    def _may_check(self, device: str) -> bool:
        if self.stop_on:
            return True
        waited = time.monotonic() - self._last_check >= READ_SECONDS.get(device, math.inf)
        return (waited or len(self._pending) >= MAX_PENDING) and self._affordable()

    def _affordable(self) -> bool:
        """Whether rules and files have taken a small share of the time so far."""
        return self._check_seconds <= MAX_CHECK_SHARE * (time.monotonic() - self._began)

    def _must_stop(self) -> bool:
        fired = [name for name in self.stop_on if self.outcomes[name].status == ISSUES]
        if fired and self.stopped_by is None:
            self.stopped_by = fired[0]
            reason = {"rule": fired[0], "sentence": self.outcomes[fired[0]].sentence}
            atomic_write_text(self.folder / STOPPED, json.dumps(reason, indent=1) + "\n")
            log.warning("%s ends the training (debug.stop_on).", fired[0])
        return bool(fired)

    def _read(self) -> None:
        """Copy pending values from the device to this process."""
        if self._losses:
            self.losses.extend(torch.stack(self._losses).double().cpu().tolist())
            self._losses = []
        pending, self._pending = self._pending, []
        self.observations += [_observation(values) for values in pending]
        if self._validated is not None:
            images, correct = (counts.int().cpu().tolist() for counts in self._validated)
            self._class_results = tuple(zip(images, correct, strict=True))
            self._validated = None

    def _check_rules(self, trainer: L.Trainer) -> None:
        began = time.monotonic()
        self._read()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        self._history = next((callback.rows for callback in callbacks if isinstance(callback, History)), [])
        record = self.record
        before, self.outcomes = self.outcomes, {name: rule.check(record) for name, rule in self.rules.items()}
        for name, outcome in self.outcomes.items():
            if outcome.status == ISSUES and (name not in before or before[name].status != ISSUES):
                self._warn(outcome)
        self._last_check = time.monotonic()
        self._check_seconds += self._last_check - began

    def _write(self, *, whole: bool = True) -> None:
        """Write what is new: the observations, and if `whole` the steps and what the rules have found."""
        began = time.monotonic()
        self._read()
        content = len(self.losses), len(self.observations), id(self.outcomes)
        if content == self._content:
            return
        storage.write_observations(self.folder, self.observations[self._written :])
        self._written = len(self.observations)
        if whole:
            self._content = content
            storage.write_steps(self.folder, self.record, self._steps_written)
            self._steps_written = len(self.losses)
            if self.outcomes:
                storage.write_rules(self.folder, self.outcomes.values())
        self._check_seconds += time.monotonic() - began


def _observation(values: dict[str, Any]) -> Observation:
    activations, parameters = values.pop("activations").read(), values.pop("parameters").read()
    loss = float(values.pop("loss"))
    infinite = [*([] if math.isfinite(loss) else ["loss"]), *parameters.pop("infinite"), *activations.pop("infinite")]
    nan = [*(["loss"] if math.isnan(loss) else []), *parameters.pop("nan")]
    if values.pop("scaled"):  # the scaler skips such a step and lowers its factor
        infinite, nan = ([name for name in names if not name.startswith("gradient")] for names in (infinite, nan))
    return Observation(loss=loss, infinite=tuple(infinite), nan=tuple(nan), **values, **parameters, **activations)
