"""A search that AWS runs, with the interface that pages and tables need: Optuna's names, without Optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.space import Choice, Dimension, Space


class State(Enum):
    """The state of a trial; Optuna's names."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"

    def is_finished(self) -> bool:
        """Whether the trial has ended."""
        return self not in (State.WAITING, State.RUNNING)


class Search(Protocol):
    """What pages and tables show: a `Study`, or a `RemoteSearch`."""

    name: str
    options: SearchOptions
    space: Space
    folder: Path

    @property
    def trials(self) -> Sequence[Any]: ...
    @property
    def total(self) -> int: ...
    @property
    def optuna(self) -> Any: ...


@dataclass(frozen=True)
class RemoteTrial:
    """The part of Optuna's FrozenTrial that is shown.

    Args:
        number: from 0.
        state: of the trial.
        params: the typed value of each option.
        values: of the objectives, where the trial is complete.
        user_attrs: reason (why it failed or was ended), job, folder, epochs, best_epoch.
        datetime_start, datetime_complete: of its training.
        intermediate_values: none, since AWS does not keep them.
    """

    number: int
    state: State
    params: Mapping[str, Any]
    values: Sequence[float] | None = None
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    datetime_start: datetime | None = None
    datetime_complete: datetime | None = None
    intermediate_values: Mapping[int, float] = field(default_factory=dict)

    @property
    def duration(self) -> timedelta | None:
        """Of the training; None until it has ended."""
        if self.datetime_start is None or self.datetime_complete is None:
            return None
        return self.datetime_complete - self.datetime_start


@dataclass
class RemoteSearch:
    """What is known here of a search that AWS runs.

    Args:
        name, options, space: of the search.
        folder: the sweep's folder here.
        total: the number of trials in the end.
        trials: those that have started.
    """

    name: str
    options: SearchOptions
    space: Space
    folder: Path
    total: int
    trials: Sequence[RemoteTrial] = ()

    @property
    def optuna(self) -> Any:
        """The complete trials as a study of Optuna, in memory. Raises UserError where it is not installed."""
        from imgcls.sweeps.storage import need_optuna

        optuna = need_optuna()
        ((_, way),) = self.options.objectives.items()
        study = optuna.create_study(direction="maximize" if way == "max" else "minimize")
        distributions = {dimension.name: _distribution(optuna.distributions, dimension) for dimension in self.space}
        for trial in self.trials:
            if trial.state is State.COMPLETE:
                params, values = self.space.checked(trial.params, "trial"), list(trial.values or ())
                study.add_trial(optuna.create_trial(params=params, distributions=distributions, values=values))
        return study


def _distribution(kinds: Any, dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        return kinds.CategoricalDistribution(dimension.values)
    if dimension.whole:
        step = int(dimension.step or 1)
        return kinds.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
