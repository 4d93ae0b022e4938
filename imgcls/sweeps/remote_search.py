"""A search that was run elsewhere: its trials, in the form in which those of a study here are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.space import Choice, Space


class State(Enum):
    """How far a trial is; Optuna's names."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"

    def is_finished(self) -> bool:
        """Whether nothing of the trial will change."""
        return self not in (State.WAITING, State.RUNNING)


class Trial(Protocol):
    """What is shown of a trial: the part of Optuna's FrozenTrial that `RemoteTrial` has too."""

    @property
    def number(self) -> int: ...
    @property
    def state(self) -> Any: ...
    @property
    def params(self) -> Any: ...
    @property
    def values(self) -> Any: ...
    @property
    def user_attrs(self) -> Any: ...
    @property
    def intermediate_values(self) -> Any: ...
    @property
    def datetime_complete(self) -> datetime | None: ...
    @property
    def duration(self) -> timedelta | None: ...


class Search(Protocol):
    """What is shown of a search: a `Study`, or a `RemoteSearch`."""

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
    """A trial; the names are Optuna's.

    Args:
        number: from 0.
        state: how far it is.
        params: its values, by option, each of its own type.
        values: of the objectives, where it is complete.
        user_attrs: reason (why it failed or was ended), folder, epochs, best_epoch.
        datetime_start, datetime_complete: of its training.
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
        """Of its training."""
        if self.datetime_start is None or self.datetime_complete is None:
            return None
        return self.datetime_complete - self.datetime_start


@dataclass
class RemoteSearch:
    """A search as far as it is known here.

    Args:
        name: of the search.
        options: the options `search.*`.
        space: what is searched over.
        folder: the sweep's folder here.
        total: trials in the end.
        trials: those that have begun.
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
        kinds = {one.name: _distribution(optuna.distributions, one) for one in self.space}
        for trial in self.trials:
            if trial.state is State.COMPLETE:
                params = {name: self.space[name].checked(value) for name, value in trial.params.items()}
                study.add_trial(
                    optuna.create_trial(params=params, distributions=kinds, values=list(trial.values or ()))
                )
        return study


def _distribution(kinds: Any, dimension: Any) -> Any:
    if isinstance(dimension, Choice):
        return kinds.CategoricalDistribution(dimension.values)
    if dimension.whole:
        step = int(dimension.step or 1)
        return kinds.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
