"""The options `search.*`: what is optimised, how, for how long, and where the study is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imgcls.errors import UserError
from imgcls.models.choices import MODES, VALIDATION_METRICS, metric_mode
from imgcls.system.checks import check_value, choice

COSTS = {"seconds": "min", "training_seconds": "min", "parameters": "min", "images_per_second": "max"}
PRUNED = "pruning"  # the rule in `status.json` that ended a trial early


@dataclass(frozen=True)
class SearchOptions:
    """The checked options of one search, without Optuna's classes.

    Args:
        objectives: the metrics that are compared, each with `max` or `min`.
        trials: the study's number of trials in the end, with pruned and failed ones; a grid has its own number.
        workers: how many of them run at the same time on this machine.
        study: the name of the study; None: made from the command.
        storage: None or 'sqlite': a file in the sweep's folder; 'journal': another kind of file there; or an address.
        max_failures: the number of failed trials at which the search stops.
        attempts: how often a worker may die at the same point of a trial before the trial counts as failed.
        dead_after: seconds without a heartbeat after which a worker on another machine counts as dead.
        cv: the number of folds of the cross-validation that compares the trials; None: there is none.
        refit: whether to train the best configuration again at the end, and test it.
        first: good values to try before all others.
        sampler: the configuration of an Optuna sampler; its `_target_` may be 'grid'.
        pruner: the configuration of an Optuna pruner.
        seed: decides what the sampler suggests.
    """

    objectives: Mapping[str, str]
    trials: int = 20
    workers: int = 1
    study: str | None = None
    storage: str | None = None
    max_failures: int = 5
    attempts: int = 3
    dead_after: float = 300.0
    cv: int | None = None
    refit: bool = False
    first: Sequence[Mapping[str, Any]] = ()
    sampler: Mapping[str, Any] = field(default_factory=lambda: {"_target_": "optuna.samplers.TPESampler"})
    pruner: Mapping[str, Any] = field(default_factory=lambda: {"_target_": "optuna.pruners.NopPruner"})
    seed: int = 0

    @property
    def grid(self) -> bool:
        """Whether every combination is tried."""
        return self.sampler.get("_target_") == "grid"

    @property
    def prunes(self) -> bool:
        """Whether a trial may be ended early."""
        return not str(self.pruner.get("_target_")).endswith(".NopPruner")


def search_options(search: Mapping[str, Any], seed: int, metrics: Iterable[str] = ()) -> SearchOptions:
    """The options from the plain dictionary `search` of a configuration. Raises UserError for what cannot be right.

    `metrics` are the names of the option `metrics`, which are objectives too.

    >>> from imgcls import compose
    >>> from imgcls.config import plain
    >>> search_options(plain(compose(["search.objective=val/loss"]))["search"], seed=0).objectives
    {'val/loss': 'min'}
    """
    measured = {f"val/{name}": metric_mode(name) for name in metrics} | VALIDATION_METRICS
    known = {**measured, **COSTS}
    names = _as_list(search["objective"])
    ways = _as_list(search["direction"]) if search["direction"] is not None else [None] * len(names)
    if len(names) != len(ways):
        raise UserError(
            f"search.objective has {len(names)} metrics and search.direction {len(ways)} directions. "
            "Give one for each, as in search.direction=[max,min], or none."
        )
    for name in names:
        if str(name).startswith("test/"):
            raise UserError(
                f"search.objective={name}: the test set is never searched on. Choose a validation metric, "
                "and search.refit=true to test the best configuration once."
            )
        check_value("search.objective", name, choice(*known))
    for way in ways:
        check_value("search.direction", way, choice(*MODES, None))
    if names[0] not in measured:
        raise UserError(f"search.objective={names[0]}: alone it would choose the worst model. Put a val/ metric first.")
    options = SearchOptions(
        objectives={name: way or known[name] for name, way in zip(names, ways, strict=True)},
        seed=seed,
        **{name: value for name, value in search.items() if name not in ("objective", "direction", "space", "tuning")},
    )
    if options.prunes and len(names) > 1:
        raise UserError("search/pruner: a search for several objectives cannot prune. Use search/pruner=none.")
    return options


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
