"""Observes a training every so many steps and lets the rules look at what was seen."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from imgcls.debug.activations import Activations
from imgcls.debug.observations import Observation, Record, read_observations, write_observations
from imgcls.debug.parameters import Parameters
from imgcls.debug.rules import ISSUES, Outcome, Rule
from imgcls.errors import UserError, nearest
from imgcls.files import atomic_write_text
from imgcls.history import History

log = logging.getLogger(__name__)

FIRST_STEPS = 5  # always observed: what is wrong from the start shows here
PENDING = 20  # observations that wait on the device before they are read
STOPPED = "stopped.json"  # the rule that ended the training, and why
LONG = 60.0  # seconds from which a step is written down as a pause


class Recorder(Checkpoint):
    """Writes `observations.jsonl` and `rules.json` in a run's folder `debug`, while it trains.

    Statistics are computed on the device and read at the end of the epoch (or when twenty wait), so that no step waits
    for them; the first process alone observes. It is a Checkpoint for Lightning only so that it runs after the metrics
    of the epoch are known.

    Args:
        folder: `debug` in the run folder.
        every: observe each n-th optimiser step, and the first few.
        rules: by name.
        warn: say in the log what a rule finds, as soon as it is found.
        stop_on: names of rules that end the training, cleanly: where the rules look (after twenty observations and at
            the end of an epoch; with several processes only there), it validates, and the run goes on to its test.
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
        self.warn, self.stop_on, self.class_counts = warn, tuple(stop_on), tuple(class_counts)
        for name in self.stop_on:
            if name not in self.rules:
                raise UserError(f"debug.stop_on: there is no rule {name!r}. {nearest(name, self.rules)}")
        self.observations: list[Observation] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.pauses: list[tuple[int, float]] = []
        self.stopped_by: str | None = None
        self.outcomes: dict[str, Outcome] = {}
        self._pending: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._activations: Activations | None = None
        self._parameters: Parameters | None = None
        self._step_began = time.monotonic()

    # ---- what Lightning calls

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "rates": torch.tensor(self.rates, dtype=torch.float64),
            "pauses": [list(pause) for pause in self.pauses],
            "stopped_by": self.stopped_by,
            "observed": len(self.observations),
        }

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            self._write()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.rates = state_dict["losses"].tolist(), state_dict["rates"].tolist()
        self.pauses = [(int(step), float(seconds)) for step, seconds in state_dict["pauses"]]
        self.stopped_by = state_dict["stopped_by"]
        seen = list(read_observations(self.folder / "observations.jsonl"))
        self.observations = [one for one in seen if one.step < len(self.losses)]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step_began = time.monotonic()
        if self.stopped_by is not None:  # the run was killed after a rule had stopped it, before its test
            trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or not self._observes(trainer.global_step):
            return
        network: Any = pl_module.network
        if self._activations is None:
            self._activations = Activations(network, batch[0])

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
        now = time.monotonic()
        if now - self._step_began > LONG:
            self.pauses.append((trainer.global_step - 1, round(now - self._step_began, 1)))
        self._step_began = now
        if self._activations is not None and self._parameters is not None:
            self._pending.append(
                {
                    "step": trainer.global_step - 1,
                    "epoch": trainer.current_epoch,
                    "loss": loss,
                    "activations": self._activations.end(),
                    "parameters": self._parameters.end(),
                    "images": len(batch[0]),
                }
            )
            self._activations = self._parameters = None
            if len(self._pending) >= PENDING:
                self._look(_history(trainer))
                trainer.should_stop = trainer.should_stop or (self._must_stop() and trainer.world_size == 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step_began = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step_began = time.monotonic()
        stop = False
        if trainer.is_global_zero:
            self._look(_history(trainer))
            stop = self._must_stop()
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        trainer.should_stop = trainer.should_stop or stop

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._activations is not None:
            self._activations.end()
        self._activations = self._parameters = None

    # ---- inside

    def _observes(self, step: int) -> bool:
        return step < FIRST_STEPS or step % self.every == 0

    def _read(self) -> None:
        """Bring what waits on the device to this process."""
        if self._losses:
            self.losses += torch.stack(self._losses).double().cpu().tolist()
            self._losses = []
        pending, self._pending = self._pending, []
        self.observations += [_observation(seen) for seen in pending]

    def _must_stop(self) -> bool:
        found = [name for name in self.stop_on if self.outcomes[name].status == ISSUES]
        if found and self.stopped_by is None:
            self.stopped_by = found[0]
            why = {"rule": found[0], "sentence": self.outcomes[found[0]].sentence}
            atomic_write_text(self.folder / STOPPED, json.dumps(why, indent=1) + "\n")
            log.warning("%s ends the training (debug.stop_on).", found[0])
        return bool(found)

    def _write(self) -> None:
        self._read()
        atomic_write_text(self.folder / "observations.jsonl", write_observations(self.observations))

    def _look(self, history: Sequence[Mapping[str, float]]) -> None:
        self._read()
        record = Record(
            tuple(self.observations),
            tuple(self.losses),
            tuple(self.rates),
            tuple(history),
            self.class_counts,
            tuple(self.pauses),
        )
        before, self.outcomes = self.outcomes, {name: rule.check(record) for name, rule in self.rules.items()}
        for name, outcome in self.outcomes.items():
            if self.warn and outcome.status == ISSUES and (name not in before or before[name].status != ISSUES):
                log.warning("%s: %s %s", name, outcome.sentence, outcome.advice)
        self._write()
        write_outcomes(self.folder, list(self.outcomes.values()))


def write_outcomes(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """`rules.json` for the report, and for each rule a file as SageMaker writes it, in `folder`."""
    atomic_write_text(folder / "rules.json", json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    for outcome in outcomes:
        atomic_write_text(folder / "rules" / f"{outcome.rule}.json", json.dumps(outcome.as_sagemaker()) + "\n")


def _history(trainer: L.Trainer) -> list[dict[str, float]]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((one.rows for one in callbacks if isinstance(one, History)), [])


def _observation(seen: dict[str, Any]) -> Observation:
    activations, parameters = seen["activations"].read(), seen["parameters"].read()
    loss = float(seen["loss"])
    infinite = [] if math.isfinite(loss) else ["loss"]
    return Observation(
        step=seen["step"],
        epoch=seen["epoch"],
        loss=loss,
        images=seen["images"],
        infinite=(*infinite, *parameters.pop("infinite"), *activations.pop("infinite")),
        **parameters,
        **activations,
    )
