"""One study in a storage: its trials are claimed, ended and, where a worker has died, given to another one.

A worker that finds no waiting trial creates one, up to the search's number, and the storage lets only one worker claim
it. So the number of trials is exact with any number of workers, reading the study costs as much as the running trials,
and the trial of a killed worker becomes a waiting one again, with its values and its run folder.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imgcls.errors import UserError
from imgcls.runs.provenance import hide_secrets
from imgcls.runs.reading import read_history
from imgcls.sweeps.liveness import ACTIVE, Watch, is_here, is_locked, me
from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.optuna_internals import id_of, id_of_number, open_trial, share_search_space
from imgcls.sweeps.space import Choice, Dimension, Space
from imgcls.sweeps.storage import (
    alone,
    build,
    need_optuna,
    need_sampler,
    open_storage,
    storage_address,
    storage_file,
    without_experimental_warnings,
)
from imgcls.system.background import repeat

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study as OptunaStudy
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

T = TypeVar("T")
PATIENCE_SECONDS = 120.0  # that a storage may be unreachable


@dataclass(frozen=True)
class Claim:
    """A trial that this worker must run.

    Args:
        number: from 0.
        overrides: the values of the options that are searched over.
        folder: the trial's run folder.
    """

    number: int
    overrides: list[str]
    folder: Path


class Study:
    """The study of one search.

    Args:
        name: of the study in its storage.
        options: the options `search.*`.
        space: what is searched over.
        folder: the sweep's folder; trial N has its run folder in `folder/N`.
        supervised: whether this worker is restarted when it dies, so that deaths must be counted.
    """

    def __init__(
        self, name: str, options: SearchOptions, space: Space, folder: Path, *, supervised: bool = False
    ) -> None:
        self._api = need_optuna()
        self._states = self._api.trial.TrialState
        need_sampler(options.sampler)
        self.name, self.options, self.space = name, options, space
        self.folder = folder.absolute()
        self.address = storage_address(options.storage, self.folder)
        self.first = self._first_values()
        self.token = secrets.token_hex(8)
        self._watch = Watch(options.dead_after)
        self._beat = 0
        self._mine: set[int] = set()
        self._earlier: BaseSampler | None = None  # the last sampler
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = storage_file(self.address)
        self._storage = open_storage(self.address)
        ACTIVE.add(self.token)
        with self._alone():
            self._optuna = self._patiently(self._open)
            self._requeue_dead(count=supervised)

    @property
    def optuna(self) -> OptunaStudy:
        """Optuna's study."""
        return self._optuna

    @property
    def trials(self) -> list[FrozenTrial]:
        """The trials of this search that have been created, by number."""
        return self._patiently(lambda: self._optuna.get_trials(deepcopy=False))[: self.total]

    @property
    def total(self) -> int:
        """The number of trials that the search has in the end."""
        return self.space.combinations if self.options.grid else self.options.trials

    @property
    def finished(self) -> bool:
        """Whether all trials have ended."""
        trials = self.trials
        return len(trials) == self.total and all(trial.state.is_finished() for trial in trials)

    @property
    def has_waiting(self) -> bool:
        """Whether a trial waits for a worker, or has not been created yet."""
        trials = self.trials
        return len(trials) < self.total or any(trial.state.name == "WAITING" for trial in trials)

    def stopped(self) -> str | None:
        """The reason for starting no further trial, which is too many failed ones; None where the search continues."""
        failed = [trial for trial in self.trials if trial.state.name == "FAIL"]
        if len(failed) < self.options.max_failures:
            return None
        reason = failed[-1].user_attrs.get("reason", "no reason recorded")
        return f"{len(failed)} trials failed (search.max_failures), the last one: {reason}"

    def claim(self) -> Claim | None:
        """Take the next waiting trial to run it here; None where there is none."""
        taken = self._take()
        if taken is None:
            return None
        try:
            self._optuna.sampler = self._sampler(taken.number)
            trial = open_trial(self._optuna, id_of(taken))
            values = {}
            for position, item in enumerate(self.space, start=1):
                self._optuna.sampler = self._sampler(taken.number, position)
                values[item.name] = self._patiently(functools.partial(_suggest, trial, item))
        except BaseException:
            self._release(id_of(taken))
            raise
        return Claim(taken.number, self.space.overrides(values), self.folder / str(taken.number))

    def beat(self) -> None:
        """Sign the running trials of this worker with a new heartbeat."""
        self._beat += 1
        sign = {**me(), "token": self.token, "beat": self._beat}
        for trial_id in tuple(self._mine):
            with contextlib.suppress(Exception):  # an unreachable storage is no reason to stop training
                self._storage.set_trial_user_attr(trial_id, "worker", sign)

    def alive(self) -> contextlib.AbstractContextManager[None]:
        """A context in which a thread calls `beat` for trials that take long."""
        return repeat(self.beat, self.options.dead_after / 6, "search heartbeat")

    def complete(self, claim: Claim, values: list[float]) -> None:
        """Record that the trial has ended with `values`, one for each objective."""
        self._tell(claim.number, values, "COMPLETE")

    def prune(self, claim: Claim, reason: str) -> None:
        """Record that the trial was ended early."""
        self._note(claim.number, reason=reason)
        self._tell(claim.number, None, "PRUNED")

    def fail(self, claim: Claim, reason: str) -> None:
        """Record that the trial has failed; the search continues without it."""
        self._fail(claim.number, reason)

    def release(self, claim: Claim) -> None:
        """Let an interrupted trial wait for the next worker, which resumes it."""
        self._release(self._id(claim.number))

    def note(self, claim: Claim, **facts: Any) -> None:
        """Store `facts` with the trial."""
        self._note(claim.number, **facts)

    def requeue(self) -> None:
        """Let the trials of dead workers wait for others."""
        with self._alone():
            self._requeue_dead(count=True)

    def win(self, what: str) -> bool:
        """Whether this worker, of all of the study, is the one to do `what`; another one may after it was killed."""
        with self._alone():
            owner = self._optuna.user_attrs.get(what)
            if owner is not None and owner["token"] != self.token and (owner["host"] != me()["host"] or is_here(owner)):
                return False
            self._optuna.set_user_attr(what, {**me(), "token": self.token})
        return True

    def close(self) -> None:
        """Count this worker as dead from now on."""
        ACTIVE.discard(self.token)

    def _open(self) -> OptunaStudy:
        try:
            study = self._api.create_study(
                storage=self._storage,
                study_name=self.name,
                directions=["maximize" if way == "max" else "minimize" for way in self.options.objectives.values()],
                sampler=self._api.samplers.RandomSampler(self.options.seed),
                load_if_exists=True,
            )
        except ValueError as error:
            raise UserError(f"search.study={self.name}: {error}. Choose another search.study.") from error
        described = {"space": self.space.describe(), "objectives": dict(self.options.objectives)}
        known = study.user_attrs.get("imgcls")
        if known is None:
            study.set_user_attr("imgcls", described)
            with without_experimental_warnings():
                study.set_metric_names(list(self.options.objectives))
        elif known != described:
            changed = next(name for name in described if known.get(name) != described[name])
            raise UserError(
                f"The study {self.name!r} was started with {changed}={known.get(changed)}. "
                "Choose another search.study, or the same space and objectives to resume it."
            )
        return study

    def _first_values(self) -> list[dict[str, Any]]:
        """The checked values of the first trials; of all in a grid."""
        if self.options.grid:
            return list(self.space.grid())
        return [self.space.checked(values, "search.first") for values in self.options.first]

    def _take(self) -> FrozenTrial | None:
        with self._alone():
            self._requeue_dead(count=True)
            while (taken := self._take_waiting()) is None and len(self.trials) < self.total:
                # Another machine may create one too, and be faster: then the surplus waits for a longer search.
                self._patiently(lambda: self._optuna.enqueue_trial({}))
        return taken

    def _take_waiting(self) -> FrozenTrial | None:
        for trial in self.trials:
            if trial.state != self._states.WAITING or is_locked(self.folder / str(trial.number)):
                continue  # or released while a launcher's process is still ending it
            with self._unless_finished():  # by another machine, at this moment
                if self._storage.set_trial_state_values(id_of(trial), self._states.RUNNING):
                    self._mine.add(id_of(trial))
                    self.beat()
                    return trial
        return None

    def _sampler(self, number: int, position: int = 0) -> Any:
        """The sampler for trial `number`: for what it samples jointly, or alone for the option at `position` from 1.

        Each has a seed of its own, so that a search resumes as if uninterrupted even where it was killed after some of
        a trial's values were stored.
        """
        import numpy as np

        seed = int(np.random.SeedSequence([self.options.seed, number, position]).generate_state(1)[0] >> 1)
        if not position and str(self.options.sampler["_target_"]).endswith("QMCSampler"):
            seed = self.options.seed  # one sequence for all trials
        samplers = self._api.samplers
        sampler = samplers.RandomSampler(seed) if self.options.grid else build(self.options.sampler, seed=seed)
        if self._earlier is not None:
            share_search_space(sampler, self._earlier)
        self._earlier = sampler
        if number >= len(self.first):
            return sampler
        with without_experimental_warnings():
            return samplers.PartialFixedSampler(self.first[number], sampler)

    def _requeue_dead(self, count: bool) -> None:
        for seen in self.trials:
            if seen.state != self._states.RUNNING or self._is_worked_on(seen):
                continue
            trial = self._storage.get_trial(id_of(seen))  # another machine may have been faster
            if trial.state != self._states.RUNNING or trial.user_attrs.get("worker") != seen.user_attrs.get("worker"):
                continue
            if count:
                epochs = len(read_history(self.folder / str(trial.number)))
                place, times = trial.user_attrs.get("died", [None, 0])
                times = times + 1 if place == epochs else 1
                if times >= self.options.attempts:
                    self._fail(trial.number, f"its worker died {times} times after epoch {epochs}")
                    continue
                self._note(trial.number, died=[epochs, times])
            log.info("The worker of trial %d died; the trial will be resumed.", trial.number)
            self._release(id_of(trial))

    def _is_worked_on(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        # unsigned: killed after its claim, which under the lock of a file is one step with the first heartbeat
        dead = worker is None and self._file is not None
        alive = not dead and self._watch.is_alive(worker, trial.number)
        return alive or is_locked(self.folder / str(trial.number))

    def _release(self, trial_id: int) -> None:
        self._mine.discard(trial_id)
        with self._unless_finished():
            self._patiently(lambda: self._storage.set_trial_state_values(trial_id, self._states.WAITING))

    def _tell(self, number: int, values: list[float] | None, state: str) -> None:
        self._patiently(lambda: self._optuna.tell(number, values, state=self._states[state], skip_if_finished=True))
        self._mine.discard(self._id(number))

    def _fail(self, number: int, reason: str) -> None:
        self._note(number, reason=reason)
        self._tell(number, None, "FAIL")

    def _note(self, number: int, **facts: Any) -> None:
        for name, value in facts.items():
            with self._unless_finished():
                self._patiently(functools.partial(self._storage.set_trial_user_attr, self._id(number), name, value))

    def _unless_finished(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.suppress(self._api.exceptions.UpdateFinishedTrialError)

    def _id(self, number: int) -> int:
        return self._patiently(lambda: id_of_number(self._optuna, number))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask the storage, and retry while it is unreachable. Raises UserError where it stays so."""
        began, pause = time.monotonic(), 0.1
        while True:
            try:
                return ask()
            except self._api.exceptions.StorageInternalError as error:
                if time.monotonic() - began > PATIENCE_SECONDS:
                    reason = hide_secrets(str(error.__cause__ or error).splitlines()[0])
                    raise UserError(
                        f"The study's storage {hide_secrets(self.address)} does not answer: {reason}. "
                        "Run the same command again to resume when it does."
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Let one worker at a time, of all that share the storage's file, or else the sweep's folder, work."""
        return alone(self._file if self._file is not None else self.folder / "study")


def _suggest(trial: Trial, dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        return trial.suggest_categorical(dimension.name, dimension.values)
    low, high, log_scale = dimension.low, dimension.high, dimension.log
    if dimension.whole:
        return trial.suggest_int(dimension.name, int(low), int(high), step=int(dimension.step or 1), log=log_scale)
    return trial.suggest_float(dimension.name, low, high, step=dimension.step, log=log_scale)
