"""One study in a storage: its trials are claimed, told and, where a worker has died, handed to another one.

All trials of a search exist from the start, waiting: a worker claims one, and the storage sees to it that nobody else
does. So their number is exact however many workers there are, and a killed worker leaves a running trial behind, which
goes back to the waiting ones with its values and its run folder.
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
from imgcls.runs.provenance import without_passwords
from imgcls.runs.reading import read_history
from imgcls.sweeps.liveness import ACTIVE, Watch, is_here, is_locked, me
from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.optuna_internals import id_of, id_of_number, open_trial
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
    from optuna.study import Study as OptunaStudy
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

T = TypeVar("T")
PATIENCE = 120.0  # seconds that a storage may be away


@dataclass(frozen=True)
class Claim:
    """A trial that this worker has to run.

    Args:
        number: from 0.
        words: the values of what is searched over, as overrides.
        folder: the trial's run folder.
    """

    number: int
    words: list[str]
    folder: Path


class Study:
    """The study of one search.

    Args:
        name: of the study in its storage.
        options: the options `search.*`.
        space: what is searched over.
        folder: the sweep's folder; trial N has its run folder in `folder/N`.
        supervised: whether this worker is begun again by itself when it dies, so that deaths are to be counted.
    """

    def __init__(
        self, name: str, options: SearchOptions, space: Space, folder: Path, *, supervised: bool = False
    ) -> None:
        need_optuna()
        need_sampler(options.sampler)
        self.name, self.options, self.space = name, options, space
        self.folder = folder.absolute()
        self.address = storage_address(options.storage, self.folder)
        self.given = self._given()
        self.token = secrets.token_hex(8)
        self._watch = Watch(options.dead_after)
        self._beat = 0
        self._mine: set[int] = set()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = storage_file(self.address)
        self._storage = open_storage(self.address)
        ACTIVE.add(self.token)
        with self._alone():
            self._optuna = self._patiently(self._open)
            self._fill()
            self._requeue_dead(count=supervised)

    # The study

    @property
    def optuna(self) -> OptunaStudy:
        """Optuna's own object."""
        return self._optuna

    @property
    def trials(self) -> list[FrozenTrial]:
        """The trials of this search, by number."""
        found = self._patiently(lambda: self._optuna.get_trials(deepcopy=False))
        return sorted(found, key=lambda trial: trial.number)[: self.total]

    @property
    def total(self) -> int:
        """How many trials the search has in the end."""
        return self.space.combinations if self.options.grid else self.options.trials

    @property
    def finished(self) -> bool:
        """Whether no trial is left to do."""
        trials = self.trials
        return len(trials) == self.total and all(trial.state.is_finished() for trial in trials)

    @property
    def has_waiting(self) -> bool:
        """Whether there is a trial that nobody works on."""
        return any(trial.state.name == "WAITING" for trial in self.trials)

    def stopped(self) -> str | None:
        """Why no further trial is begun: too many have failed; None: go on."""
        failed = [trial for trial in self.trials if trial.state.name == "FAIL"]
        if len(failed) < self.options.max_failures:
            return None
        reason = failed[-1].user_attrs.get("reason", "no reason recorded")
        return f"{len(failed)} trials failed (search.max_failures), the last one: {reason}"

    # A worker's life

    def claim(self) -> Claim | None:
        """The next waiting trial, now running here; None where there is none."""
        taken = self._take()
        if taken is None:
            return None
        try:
            self._optuna.sampler = self._sampler(taken.number)
            trial = self._trial(taken)
            values = self._patiently(lambda: {one.name: _suggest(trial, one) for one in self.space.dimensions})
        except BaseException:
            self._give_back(id_of(taken))
            raise
        return Claim(taken.number, self.space.words(values), self.folder / str(taken.number))

    def beat(self) -> None:
        """Leave a sign of life with the running trials of this worker."""
        self._beat += 1
        sign = {**me(), "token": self.token, "beat": self._beat}
        for trial_id in tuple(self._mine):
            with contextlib.suppress(Exception):  # a storage that is away for a moment is no reason to stop training
                self._storage.set_trial_user_attr(trial_id, "worker", sign)

    def alive(self) -> contextlib.AbstractContextManager[None]:
        """A context in which a thread leaves signs of life for trials that take long."""
        return repeat(self.beat, self.options.dead_after / 6, "search heartbeat")

    def complete(self, claim: Claim, values: list[float]) -> None:
        """The trial has ended with `values`, one for each objective."""
        self._tell(claim.number, values, "COMPLETE")

    def prune(self, claim: Claim, reason: str) -> None:
        """The trial was ended early."""
        self._note(claim.number, reason=reason)
        self._tell(claim.number, None, "PRUNED")

    def fail(self, claim: Claim, reason: str) -> None:
        """The trial has failed; the search goes on without it."""
        self._fail(claim.number, reason)

    def release(self, claim: Claim) -> None:
        """Give a trial back that was interrupted: whoever claims it goes on with it."""
        self._give_back(self._id(claim.number))

    def note(self, claim: Claim, **facts: Any) -> None:
        """Keep `facts` with the trial."""
        self._note(claim.number, **facts)

    def requeue(self) -> None:
        """Let trials whose worker has died wait for another one."""
        with self._alone():
            self._requeue_dead(count=True)

    def win(self, what: str) -> bool:
        """Whether this worker, of all that work on the study, is the one to do `what`; again so after a kill."""
        with self._alone():
            owner = self._optuna.user_attrs.get(what)
            if owner is not None and owner["token"] != self.token:
                elsewhere = owner["host"] != me()["host"]
                if elsewhere or is_here(owner):
                    return False
            self._optuna.set_user_attr(what, {**me(), "token": self.token})
        return True

    def close(self) -> None:
        """No trial is run from here any more."""
        ACTIVE.discard(self.token)

    # Inside

    def _open(self) -> OptunaStudy:
        optuna = need_optuna()
        try:
            study = optuna.create_study(
                storage=self._storage,
                study_name=self.name,
                directions=["maximize" if way == "max" else "minimize" for way in self.options.objectives.values()],
                sampler=optuna.samplers.RandomSampler(self.options.seed),
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
                f"The study {self.name!r} was begun with another {changed}: {known.get(changed)}. "
                "Choose another search.study, or the same space to go on with it."
            )
        return study

    def _fill(self) -> None:
        """Let all trials exist. Two machines may do so at once: what is too much stays waiting for a longer search."""
        for _ in range(len(self._optuna.get_trials(deepcopy=False)), self.total):
            self._optuna.enqueue_trial({})

    def _given(self) -> list[dict[str, Any]]:
        """The values of the first trials, of all in a grid; checked against the space."""
        if self.options.grid:
            return list(self.space.grid())
        return [self.space.checked(first, "search.first") for first in self.options.first]

    def _take(self) -> FrozenTrial | None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with self._alone():
            self._requeue_dead(count=True)
            for trial in self.trials:
                if trial.state != TrialState.WAITING or is_locked(self.folder / str(trial.number)):
                    continue  # or given back, while a launcher's process still ends it
                with contextlib.suppress(UpdateFinishedTrialError):  # by another machine, in this moment
                    if self._storage.set_trial_state_values(id_of(trial), TrialState.RUNNING):
                        self._mine.add(id_of(trial))
                        self.beat()
                        return trial
        return None

    def _sampler(self, number: int) -> Any:
        """The sampler for trial `number`: seeded by it, so that a killed search goes on as if nothing had been."""
        import numpy as np
        from optuna.samplers import PartialFixedSampler, RandomSampler

        seed = int(np.random.SeedSequence([self.options.seed, number]).generate_state(1)[0] >> 1)
        if str(self.options.sampler["_target_"]).endswith("QMCSampler"):
            seed = self.options.seed  # one sequence for all trials
        sampler = RandomSampler(seed) if self.options.grid else build(self.options.sampler, seed=seed)
        if number >= len(self.given):
            return sampler
        with without_experimental_warnings():
            return PartialFixedSampler(self.given[number], sampler)

    def _trial(self, taken: FrozenTrial) -> Trial:
        return open_trial(self._optuna, id_of(taken))

    def _requeue_dead(self, count: bool) -> None:
        from optuna.trial import TrialState

        for seen in self.trials:
            if seen.state != TrialState.RUNNING or self._is_worked_on(seen):
                continue
            trial = self._storage.get_trial(id_of(seen))  # another machine may have been quicker
            if trial.state != TrialState.RUNNING or trial.user_attrs.get("worker") != seen.user_attrs.get("worker"):
                continue
            if count:
                epochs = len(read_history(self.folder / str(trial.number)))
                place, times = trial.user_attrs.get("died", [None, 0])
                times = times + 1 if place == epochs else 1
                if times >= self.options.attempts:
                    self._fail(trial.number, f"its worker died {times} times after epoch {epochs}")
                    continue
                self._note(trial.number, died=[epochs, times])
            log.info("Trial %d was left by a worker that died; it goes on.", trial.number)
            self._give_back(id_of(trial))

    def _is_worked_on(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        # no sign of life: killed after its claim; for all who share a file claim and first sign are one step
        dead = worker is None and self._file is not None
        alive = not dead and self._watch.is_alive(worker, trial.number)
        return alive or is_locked(self.folder / str(trial.number))

    def _give_back(self, trial_id: int) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        self._mine.discard(trial_id)
        with contextlib.suppress(UpdateFinishedTrialError):
            self._patiently(lambda: self._storage.set_trial_state_values(trial_id, TrialState.WAITING))

    def _tell(self, number: int, values: list[float] | None, state: str) -> None:
        from optuna.trial import TrialState

        self._patiently(lambda: self._optuna.tell(number, values, state=TrialState[state], skip_if_finished=True))
        self._mine.discard(self._id(number))

    def _fail(self, number: int, reason: str) -> None:
        self._note(number, reason=reason)
        self._tell(number, None, "FAIL")

    def _note(self, number: int, **facts: Any) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        for name, value in facts.items():
            with contextlib.suppress(UpdateFinishedTrialError):
                self._patiently(functools.partial(self._storage.set_trial_user_attr, self._id(number), name, value))

    def _id(self, number: int) -> int:
        return self._patiently(lambda: id_of_number(self._optuna, number))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask the storage, again and again where it is away for a moment. Raises UserError where it stays away."""
        from optuna.exceptions import StorageInternalError

        began, pause = time.monotonic(), 0.1
        while True:
            try:
                return ask()
            except StorageInternalError as error:
                if time.monotonic() - began > PATIENCE:
                    reason = without_passwords(str(error.__cause__ or error).splitlines()[0])
                    raise UserError(
                        f"The study's storage {without_passwords(self.address)} does not answer: {reason}. "
                        "The same command goes on when it does."
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """One worker at a time, of all that share the storage's file, or else the sweep's folder."""
        return alone(self._file if self._file is not None else self.folder / "study")


def _suggest(trial: Trial, dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        return trial.suggest_categorical(dimension.name, dimension.values)
    low, high, log_scale = dimension.low, dimension.high, dimension.log
    if dimension.whole:
        return trial.suggest_int(dimension.name, int(low), int(high), step=int(dimension.step or 1), log=log_scale)
    return trial.suggest_float(dimension.name, low, high, step=dimension.step, log=log_scale)
