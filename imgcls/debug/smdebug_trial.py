"""Reads an smdebug trial recorded elsewhere as a Record for the rules."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.aws.s3 import is_remote
from imgcls.debug.observations import Observation, Record
from imgcls.debug.series import Series
from imgcls.errors import UserError
from imgcls.system.extras import check_smdebug

WEIGHT_DIMENSIONS = 2  # at least; norms and biases have one, and may be zero on purpose
TINY = 1e-30

Arrays = Mapping[str, np.ndarray]


def read_trial(path: Path | str) -> Record:
    """Losses, gradients and weights of the trial at `path`, a folder or an s3:// address.

    A trial holds no learning rates, classes or images, so rules that need them find nothing. Each stretch of validation
    after training counts as an epoch. Updates are known between steps whose weights were both saved: the change from
    one to the next.

    Raises:
        UserError: smdebug is missing, or `path` holds no trial.
    """
    check_smdebug("trial=…")
    remote = is_remote(path)
    if not remote and not (Path(path).expanduser() / "collections").is_dir():
        raise UserError(f"trial={path}: not an smdebug trial (it has no folder `collections`).")
    logging.getLogger("smdebug").setLevel(logging.ERROR)
    from smdebug import modes
    from smdebug.trials import create_trial

    trial = create_trial(str(path) if remote else str(Path(path).expanduser()))
    # If also asked for a step, a trial forgets the tensors that a collection finds by a pattern.
    named = {name: set(trial.tensor_names(collection=name)) for name in ("losses", "gradients", "weights")}

    def values(collection: str, step: int, mode: Any) -> dict[str, np.ndarray]:
        names = sorted(named[collection] & set(trial.tensor_names(step=step, mode=mode)))
        return {name: np.asarray(trial.tensor(name).value(step, mode=mode), np.float64) for name in names}

    observations: list[Observation] = []
    recorded_losses: list[float] = []
    before: dict[str, np.ndarray] = {}
    for step in trial.steps(mode=modes.TRAIN):
        losses, gradients, weights = (values(name, step, modes.TRAIN) for name in named)
        if observations and before:
            observations[-1] = _with_updates(observations[-1], before, weights)
        observations.append(_observation(step, losses, gradients, weights))
        if losses:
            recorded_losses.append(observations[-1].loss)
        before = weights
    history = tuple(_history(trial, modes, observations, values))
    return Record(tuple(observations), Series(recorded_losses), history=history)


def _history(trial: Any, modes: Any, observations: list[Observation], values: Any) -> list[dict[str, float]]:
    """An epoch per stretch of validation: its mean loss and the mean training loss since the previous one.

    A trial counts the steps of each mode separately; `global_step` orders them.
    """
    trained = [(trial.global_step(modes.TRAIN, observation.step), observation.loss) for observation in observations]
    validated = []
    for step in trial.steps(mode=modes.EVAL):
        losses = values("losses", step, modes.EVAL)
        if losses:
            loss = float(np.mean([value.mean() for value in losses.values()]))
            validated.append((trial.global_step(modes.EVAL, step), loss))
    rows: list[dict[str, float]] = []
    begin = 0
    for end, stretch in groupby(validated, key=lambda pair: sum(at < pair[0] for at, _ in trained)):
        if end > begin:
            train, val = np.mean([loss for _, loss in trained[begin:end]]), np.mean([loss for _, loss in stretch])
            step = observations[end - 1].step
            rows.append({"epoch": len(rows) + 1, "step": step, "train/loss": float(train), "val/loss": float(val)})
            begin = end
    return rows


def _observation(step: int, losses: Arrays, gradients: Arrays, weights: Arrays) -> Observation:
    layers = {name: value for name, value in gradients.items() if value.ndim >= WEIGHT_DIMENSIONS}
    matrices = {name: value for name, value in weights.items() if value.ndim >= WEIGHT_DIMENSIONS}
    means = np.array([value.mean() for value in losses.values()])
    tensors = {
        "loss": means,
        **{f"gradient of {name}": value for name, value in gradients.items()},
        **{f"weight of {name}": value for name, value in weights.items()},
    }
    return Observation(
        step=step,
        epoch=0,
        loss=float(means.mean()) if losses else float("nan"),
        gradient_size={name: float(np.abs(value).mean()) for name, value in layers.items()},
        gradient_spread={name: float(value.std()) for name, value in layers.items()},
        gradient_zeros={name: float((value == 0).mean()) for name, value in layers.items()},
        weight_zeros={name: float((value == 0).mean()) for name, value in matrices.items()},
        infinite=tuple(name for name, value in tensors.items() if not np.isfinite(value).all()),
        nan=tuple(name for name, value in tensors.items() if np.isnan(value).any()),
    )


def _with_updates(observation: Observation, before: Arrays, after: Arrays) -> Observation:
    sizes = {
        name: float(np.abs(value).max())
        for name, value in before.items()
        if value.ndim >= WEIGHT_DIMENSIONS and name in after
    }
    changes = {name: float(np.abs(after[name] - before[name]).max()) for name in sizes}
    ratios = {name: changes[name] / size for name, size in sizes.items() if size > TINY}
    return replace(observation, weight_size=sizes, update_ratio=ratios)
