"""Observes a training every so many steps and lets the rules look at what was seen."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from imgcls.callbacks.history import History
from imgcls.debug.activations import Activations, Flat
from imgcls.debug.observations import Observation, Record
from imgcls.debug.parameters import Parameters
from imgcls.debug.rules import ISSUES, Outcome, Rule
from imgcls.debug.stalls import StallWatch
from imgcls.debug.storage import (
    read_observations,
    replace_observations,
    write_observations,
    write_outcomes,
    write_rules,
    write_steps,
)
from imgcls.debug.tensor_rules import SaturatedActivation
from imgcls.debug.training_rules import StalledTraining
from imgcls.errors import UserError, nearest
from imgcls.system.files import atomic_write_text

log = logging.getLogger(__name__)

FIRST_STEPS = 5  # always observed: what is wrong from the start shows here
PENDING = 20  # observations that wait on the device, or in memory, before they are read and written
LOOKING = 0.01  # of the time of the training: what the rules may take in the middle of an epoch
READ_AFTER = {"cpu": 0.0, "cuda": 10.0}  # seconds from one look to the next; a device that is read is waited for
STOPPED = "stopped.json"  # the rule that ended the training, and why
LONG = 60.0  # seconds from which a step is written down as a pause


class Recorder(Checkpoint):
    """Records a training in a run's folder `debug` (see `storage`), and writes `rules.json` there.

    Statistics are computed on the device, by the first process alone. The rules look at the end of each epoch, and
    after an observed step as long as they take no more than a hundredth of the time; a GPU, which would be waited for,
    is read every ten seconds at most, and no other device before twenty observations wait. It is a Checkpoint for
    Lightning only so that it runs after the metrics of the epoch are known.

    Args:
        folder: `debug` in the run folder.
        every: observe each n-th optimiser step, and the first few.
        rules: by name.
        warn: say in the log what a rule finds, as soon as it is found.
        stop_on: names of rules that end the training, cleanly: it validates, and the run goes on to its test. They
            look after every observed step; with several processes only at the end of an epoch.
        class_counts: training pictures of each class.
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
        self.warn, self.stop_on = warn, tuple(stop_on)
        for name in self.stop_on:
            if name not in self.rules:
                raise UserError(f"debug.stop_on: there is no rule {name!r}. {nearest(name, self.rules)}")
        self.record = Record(class_counts=tuple(class_counts))
        """Everything that has been read from the device, as the rules were given it last."""
        self.observations: list[Observation] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.pauses: list[tuple[int, float]] = []
        self.stopped_by: str | None = None
        self.outcomes: dict[str, Outcome] = {}
        self._flat = next((_flat(rule) for rule in self.rules.values() if isinstance(rule, SaturatedActivation)), None)
        self._stalled = next((rule for rule in self.rules.values() if isinstance(rule, StalledTraining)), None)
        self._watch: StallWatch | None = None
        self._pending: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._validated: tuple[Tensor, Tensor] | None = None
        self._activations: Activations | None = None
        self._parameters: Parameters | None = None
        self._written = 0  # observations that are on disk
        self._content = 0, 0, 0  # of what is on disk
        self._began = self._step_began = self._last_look = time.monotonic()
        self._looked = 0.0  # seconds

    # ---- what Lightning calls

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "rates": torch.tensor(self.rates, dtype=torch.float64),
            "pauses": [list(pause) for pause in self.pauses],
            "recognised": [list(pair) for pair in self.record.recognised],
            "stopped_by": self.stopped_by,
        }

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            self._write()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.rates = state_dict["losses"].tolist(), state_dict["rates"].tolist()
        self.pauses = [(int(step), float(seconds)) for step, seconds in state_dict["pauses"]]
        recognised = tuple((int(seen), int(right)) for seen, right in state_dict["recognised"])
        self.record = replace(self.record, recognised=recognised)
        self.stopped_by = state_dict["stopped_by"]
        self.observations = [one for one in read_observations(self.folder) if one.step < len(self.losses)]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = self._step_began = self._last_look = time.monotonic()
        if trainer.is_global_zero:
            replace_observations(self.folder, self.observations)
            self._written = len(self.observations)
            if self._stalled is not None:
                self._watch = StallWatch(self._stalled.threshold, self._say_stall)
                self._watch.alive(trainer.global_step)
                self._watch.start()
        if self.stopped_by is not None:  # the run was killed after a rule had stopped it, before its test
            trainer.should_stop = True
        elif trainer.is_global_zero:
            (self.folder / STOPPED).unlink(missing_ok=True)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._alive(trainer)
        if not trainer.is_global_zero or not self._observes(trainer.global_step):
            return
        network: Any = pl_module.network
        if self._activations is None:
            self._activations = Activations(network, batch[0], self._flat)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._activations is not None:
            self._parameters = Parameters(pl_module.network)  # type: ignore[arg-type]
        if trainer.is_global_zero:
            self.rates.append(max(float(group["lr"]) for group in optimizer.param_groups))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or trainer.fit_loop._should_accumulate():
            return
        loss: Tensor = pl_module.last_loss.detach()  # type: ignore[operator]
        self._losses.append(loss)
        step = trainer.global_step - 1
        self._alive(trainer)
        paused = self._pause(step)
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
            paused = paused or self._may_look(pl_module.device.type)
        if paused:
            self._look(_history(trainer))
            trainer.should_stop = trainer.should_stop or (self._must_stop() and trainer.world_size == 1)
        if len(self._pending) + len(self.observations) - self._written >= PENDING:
            self._write()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._alive(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **more: Any) -> None:
        self._alive(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics: Any = getattr(pl_module, "val_metrics", None)
        if trainer.is_global_zero and metrics is not None and "macro_f1" in metrics:
            counted = metrics["macro_f1"]  # of this process's share
            self._validated = (counted.tp + counted.fn).clone(), counted.tp.clone()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step_began = time.monotonic()
        self._alive(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step_began = time.monotonic()
        self._alive(trainer)
        stop = False
        if trainer.is_global_zero:
            self._look(_history(trainer))
            self._write()
            stop = self._must_stop()
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        trainer.should_stop = trainer.should_stop or stop

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end_watch()
        if trainer.is_global_zero:
            write_outcomes(self.folder, list(self.outcomes.values()))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end_watch()
        if self._activations is not None:
            self._activations.end()
        self._activations = self._parameters = None
        if not trainer.is_global_zero or not self.losses + self._losses:
            return
        try:  # what is known when a run fails is wanted most; but a failed device cannot be read
            self._look(_history(trainer))
            self._write()
            write_outcomes(self.folder, list(self.outcomes.values()))
        except Exception as error:
            log.debug("What was observed last is lost: %s", error)

    # ---- inside

    def _observes(self, step: int) -> bool:
        return step < FIRST_STEPS or step % self.every == 0

    def _alive(self, trainer: L.Trainer) -> None:
        if self._watch is not None:
            self._watch.alive(trainer.global_step)

    def _pause(self, step: int) -> bool:
        """Write down a step that took long; whether it counts as a stall."""
        now = time.monotonic()
        seconds, self._step_began = now - self._step_began, now
        limit = self._stalled.threshold if self._stalled is not None else math.inf
        if seconds > min(LONG, limit):
            self.pauses.append((step, round(seconds, 3)))
        return seconds > limit

    def _say_stall(self, step: int, seconds: float) -> None:
        """Called by the thread that watches."""
        assert self._stalled is not None
        outcome = self._stalled.standing(step, seconds)
        if self.warn:
            log.warning("%s: %s %s", outcome.rule, outcome.sentence, outcome.advice)
        write_rules(self.folder, {**self.outcomes, outcome.rule: outcome}.values())

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def _may_look(self, device: str) -> bool:
        if self.stop_on or len(self._pending) >= PENDING:
            return True
        now = time.monotonic()
        due = now - self._last_look >= READ_AFTER.get(device, math.inf)
        return due and self._looked <= LOOKING * (now - self._began)

    def _must_stop(self) -> bool:
        found = [name for name in self.stop_on if self.outcomes[name].status == ISSUES]
        if found and self.stopped_by is None:
            self.stopped_by = found[0]
            why = {"rule": found[0], "sentence": self.outcomes[found[0]].sentence}
            atomic_write_text(self.folder / STOPPED, json.dumps(why, indent=1) + "\n")
            log.warning("%s ends the training (debug.stop_on).", found[0])
        return bool(found)

    def _read(self) -> None:
        """Bring what waits on the device to this process."""
        if self._losses:
            self.losses += torch.stack(self._losses).double().cpu().tolist()
            self._losses = []
        pending, self._pending = self._pending, []
        self.observations += [_observation(seen) for seen in pending]
        if self._validated is not None:
            seen, right = (counts.int().cpu().tolist() for counts in self._validated)
            self.record = replace(self.record, recognised=tuple(zip(seen, right, strict=True)))
            self._validated = None

    def _look(self, history: Sequence[Mapping[str, float]]) -> None:
        began = time.monotonic()
        self._read()
        self.record = replace(
            self.record,
            observations=tuple(self.observations),
            losses=tuple(self.losses),
            rates=tuple(self.rates),
            history=tuple(history),
            pauses=tuple(self.pauses),
        )
        before, self.outcomes = self.outcomes, {name: rule.check(self.record) for name, rule in self.rules.items()}
        for name, outcome in self.outcomes.items():
            if self.warn and outcome.status == ISSUES and (name not in before or before[name].status != ISSUES):
                log.warning("%s: %s %s", name, outcome.sentence, outcome.advice)
        self._last_look = time.monotonic()
        self._looked += self._last_look - began

    def _write(self) -> None:
        self._read()
        content = len(self.losses), len(self.observations), id(self.outcomes)
        if content == self._content:
            return
        self._content = content
        write_observations(self.folder, self.observations[self._written :])
        self._written = len(self.observations)
        record = replace(self.record, losses=tuple(self.losses), rates=tuple(self.rates), pauses=tuple(self.pauses))
        write_steps(self.folder, record)
        if self.outcomes:
            write_rules(self.folder, self.outcomes.values())


def _history(trainer: L.Trainer) -> list[dict[str, float]]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((one.rows for one in callbacks if isinstance(one, History)), [])


def _flat(rule: SaturatedActivation) -> Flat:
    return Flat(
        (rule.threshold_tanh_min, rule.threshold_tanh_max), (rule.threshold_sigmoid_min, rule.threshold_sigmoid_max)
    )


def _observation(seen: dict[str, Any]) -> Observation:
    activations, parameters = seen["activations"].read(), seen["parameters"].read()
    loss = float(seen["loss"])
    infinite = [*([] if math.isfinite(loss) else ["loss"]), *parameters.pop("infinite"), *activations.pop("infinite")]
    nan = [*(["loss"] if math.isnan(loss) else []), *parameters.pop("nan")]
    if seen["scaled"]:  # the scaler leaves such a step out and lowers its factor
        infinite, nan = ([one for one in those if not one.startswith("gradient")] for those in (infinite, nan))
    return Observation(
        step=seen["step"],
        epoch=seen["epoch"],
        loss=loss,
        images=seen["images"],
        infinite=tuple(infinite),
        nan=tuple(nan),
        **parameters,
        **activations,
    )
