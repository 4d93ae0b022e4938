"""An smdebug trial that someone else recorded, as the rules want it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.aws.s3 import is_remote
from imgcls.debug.observations import Observation, Record
from imgcls.errors import UserError
from imgcls.system.extras import check_smdebug

WEIGHTED = 2  # dimensions from which on a parameter is a weight: norms and biases may be zero on purpose
TINY = 1e-30

Arrays = Mapping[str, np.ndarray]


def read_trial(path: Path | str) -> Record:
    """Losses, gradients and weights of the trial at `path`, a folder or an s3:// address.

    A trial holds no learning rates, no classes and no pictures: rules that need them look at nothing. Its validation
    losses make an epoch wherever validation follows training. What a step changed is known where weights were saved
    again in a later one: the change up to that one.

    Raises:
        UserError: smdebug is missing, or `path` holds no trial.
    """
    check_smdebug("trial=…")
    remote = is_remote(path)
    if not remote and not (Path(path).expanduser() / "collections").is_dir():
        raise UserError(f"trial={path}: there is no smdebug trial (it has no folder `collections`).")
    logging.getLogger("smdebug").setLevel(logging.ERROR)
    from smdebug import modes
    from smdebug.trials import create_trial

    trial = create_trial(str(path) if remote else str(Path(path).expanduser()))
    # Asked with a step as well, a trial forgets the tensors that a collection finds by a pattern.
    named = {name: set(trial.tensor_names(collection=name)) for name in ("losses", "gradients", "weights")}

    def values(collection: str, step: int, mode: Any) -> dict[str, np.ndarray]:
        names = sorted(named[collection] & set(trial.tensor_names(step=step, mode=mode)))
        return {name: np.asarray(trial.tensor(name).value(step, mode=mode), np.float64) for name in names}

    observations: list[Observation] = []
    before: dict[str, np.ndarray] = {}
    for step in trial.steps(mode=modes.TRAIN):
        losses, gradients, weights = (values(name, step, modes.TRAIN) for name in named)
        if observations and before:
            observations[-1] = _with_updates(observations[-1], before, weights)
        observations.append(_observation(step, losses, gradients, weights))
        before = weights
    known = tuple(one.loss for one in observations if not np.isnan(one.loss) or "loss" in one.infinite)
    return Record(tuple(observations), known, history=tuple(_history(trial, modes, observations, values)))


def _history(trial: Any, modes: Any, observations: list[Observation], values: Any) -> list[dict[str, float]]:
    """An epoch for each stretch of validation: its mean loss beside the mean training loss since the last one.

    A trial counts the steps of each mode by themselves; `global_step` puts them in one order.
    """
    order = [(trial.global_step(modes.TRAIN, one.step), one.loss) for one in observations]
    validated = []
    for step in trial.steps(mode=modes.EVAL):
        found = values("losses", step, modes.EVAL)
        if found:
            loss = float(np.mean([value.mean() for value in found.values()]))
            validated.append((trial.global_step(modes.EVAL, step), loss))
    rows: list[dict[str, float]] = []
    position = 0
    while position < len(validated):
        here = validated[position][0]
        later = next((at for at, _ in order if at > here), float("inf"))
        stretch = [loss for at, loss in validated if here <= at < later]
        since = rows[-1]["until"] if rows else -1
        training = [loss for at, loss in order if since < at < here]
        if training:
            step = sum(at < here for at, _ in order)
            losses = {"train/loss": float(np.mean(training)), "val/loss": float(np.mean(stretch))}
            rows.append({"epoch": len(rows), "step": observations[step - 1].step, "until": here, **losses})
        position += len(stretch)
    return rows


def _observation(step: int, losses: Arrays, gradients: Arrays, weights: Arrays) -> Observation:
    layers = {name: value for name, value in gradients.items() if value.ndim >= WEIGHTED}
    parts = {"loss": losses, "gradient": gradients, "weight": weights}
    bad = [(kind, name, value) for kind, part in parts.items() for name, value in part.items() if not _finite(value)]
    names = ["loss" if kind == "loss" else f"{kind} of {name}" for kind, name, _ in bad]
    return Observation(
        step=step,
        epoch=0,
        loss=float(np.mean([value.mean() for value in losses.values()])) if losses else float("nan"),
        gradient_size={name: float(np.abs(value).mean()) for name, value in layers.items()},
        gradient_spread={name: float(value.std()) for name, value in layers.items()},
        gradient_zeros={name: float((value == 0).mean()) for name, value in layers.items()},
        weight_zeros={name: float((value == 0).mean()) for name, value in weights.items() if value.ndim >= WEIGHTED},
        infinite=tuple(names),
        nan=tuple(name for name, (_, _, value) in zip(names, bad, strict=True) if np.isnan(value).any()),
    )


def _with_updates(one: Observation, before: Arrays, after: Arrays) -> Observation:
    sizes = {
        name: float(np.abs(value).max()) for name, value in before.items() if value.ndim >= WEIGHTED and name in after
    }
    ratios = {name: float(np.abs(after[name] - before[name]).max()) / max(size, TINY) for name, size in sizes.items()}
    return replace(one, weight_size=sizes, update_ratio={name: ratio for name, ratio in ratios.items() if sizes[name]})


def _finite(value: np.ndarray) -> bool:
    return bool(np.isfinite(value).all())
