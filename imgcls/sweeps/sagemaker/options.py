"""The options `search.tuning.*`, and checks of everything that CreateHyperParameterTuningJob would refuse.

Limits: https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateHyperParameterTuningJob.html and the pages
about its strategies and about warm start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgcls.aws.naming import MAX_TUNING_NAME_LENGTH
from imgcls.aws.rules import is_name
from imgcls.errors import UserError
from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.sagemaker.ranges import Ranges
from imgcls.sweeps.space import Choice, Space
from imgcls.sweeps.trials import reports_of

MAX_PARENTS = 5
MAX_EPOCHS = 20000  # of Hyperband, exclusive
# Uploaded or set once for all trials.
SHARED = ("data", "data.root", "model.weights", "launch", "search", "experiment", "run_dir", "resume", "test", "quiet")


@dataclass(frozen=True)
class TuningOptions:
    """The options that `conf/hydra/sweeper/sagemaker.yaml` explains."""

    strategy: str = "bayesian"
    stop_early: bool = False
    min_epochs: int = 1
    warm_start: Sequence[str] = ()
    warm_start_type: str = "identical"
    target: float | None = None
    patience: int | None = None
    converge: bool = False
    max_runtime: int | None = None


def check_tuning(tuning: TuningOptions, search: SearchOptions, space: Space, config: Mapping[str, Any]) -> None:
    """Raise UserError for what a tuning job cannot do, with the plain, composed `config`."""
    if config["launch"].get("debugger"):
        raise UserError(
            "launch.debugger=true: tuning jobs have no field for SageMaker Debugger. "
            "Leave it out: imgcls's own rules watch every trial."
        )
    _check_search(search)
    if search.cv is not None or (config.get("cv") or {}).get("folds") is not None:
        name = "search.cv" if search.cv is not None else "cv.folds"
        raise UserError(f"{name}: AWS compares single epochs, not the mean of folds. Use hydra/sweeper=optuna.")
    for name in space.names:
        bare = name.lstrip("+")
        if bare.split(".")[0] in ("launch", "search") or bare.split("/")[0] in SHARED or bare in SHARED:
            raise UserError(f"{name}: a tuning job has one for all its trials, so it cannot be searched over.")
    total = total_trials(tuning, search, space)
    if search.workers > total:
        raise UserError(f"search.workers={search.workers}: the tuning job has only {total} trials.")
    Ranges(space, every_value=tuning.strategy == "grid")  # which raises UserError
    if tuning.strategy == "hyperband":
        _check_hyperband(tuning, space, config["trainer"]["max_epochs"])
    elif tuning.min_epochs != TuningOptions.min_epochs:
        raise UserError(f"search.tuning.min_epochs is for search.tuning.strategy=hyperband, not {tuning.strategy}.")
    if tuning.strategy == "grid" and (tuning.converge or tuning.patience is not None):
        raise UserError("search.tuning.strategy=grid tries every combination: no search.tuning.converge or patience.")
    _check_warm_start(tuning)


def total_trials(tuning: TuningOptions, search: SearchOptions, space: Space) -> int:
    """The number of trials that the job has in the end. Raises UserError for a grid of intervals."""
    return space.combinations if tuning.strategy == "grid" else search.trials


def most_epochs(space: Space, epochs: int | None) -> int | None:
    """The epochs of the longest trial; None where it is endless."""
    if "trainer.max_epochs" not in space:
        return epochs if epochs is not None and epochs > 0 else None
    dimension = space["trainer.max_epochs"]
    if isinstance(dimension, Choice):
        return max((value for value in dimension.values if isinstance(value, int)), default=None)
    return int(dimension.high)


def _check_search(search: SearchOptions) -> None:
    if len(search.objectives) > 1:
        raise UserError("search.objective: a tuning job has one objective. Give one metric, such as val/accuracy.")
    if search.prunes:
        raise UserError("search/pruner is Optuna's. A tuning job has search.tuning.stop_early=true instead.")
    if not str(search.sampler.get("_target_")).endswith(".TPESampler"):
        raise UserError("search/sampler is Optuna's. A tuning job has search.tuning.strategy=random, grid, … instead.")
    if search.first:
        raise UserError("search.first: a tuning job cannot be given first values. Leave it out.")
    if search.storage is not None:
        raise UserError("search.storage is Optuna's: AWS stores a tuning job. Leave it out.")


def _check_hyperband(tuning: TuningOptions, space: Space, epochs: int | None) -> None:
    if tuning.stop_early:
        raise UserError("search.tuning.stop_early=true: hyperband ends trials by itself. Leave it out.")
    longest, shortest = most_epochs(space, epochs), reports_of(space, epochs)
    if longest is None or shortest is None:
        raise UserError("search.tuning.strategy=hyperband needs trials with an end: give trainer.max_epochs.")
    if not tuning.min_epochs <= shortest or longest >= MAX_EPOCHS:
        raise UserError(
            f"search.tuning.strategy=hyperband: trials of {shortest} to {longest} epochs do not fit "
            f"search.tuning.min_epochs={tuning.min_epochs} and AWS's limit of {MAX_EPOCHS - 1}."
        )


def _check_warm_start(tuning: TuningOptions) -> None:
    parents = tuning.warm_start
    if not parents:
        if tuning.warm_start_type != TuningOptions.warm_start_type:
            raise UserError("search.tuning.warm_start_type needs earlier jobs: search.tuning.warm_start=[NAME].")
        return
    if tuning.strategy in ("grid", "hyperband"):
        raise UserError(
            f"search.tuning.warm_start: {tuning.strategy} cannot learn from earlier jobs. "
            "Use search.tuning.strategy=bayesian or random."
        )
    if len(parents) > MAX_PARENTS or len(set(parents)) < len(parents):
        raise UserError(f"search.tuning.warm_start: give up to {MAX_PARENTS} jobs, each once.")
    for name in parents:
        if not is_name(name, MAX_TUNING_NAME_LENGTH):
            raise UserError(
                f"search.tuning.warm_start={name}: not the name of a tuning job; `python -m imgcls.jobs` lists them."
            )
