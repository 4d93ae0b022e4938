"""The record of a training on disk: written while it runs, read when rules check it again.

The folder `debug` of a run holds

- `observations/<step>.jsonl`: observed steps, one JSON object per line, in files named by their first step;
- `steps.npz`: `loss` and `rate` (the learning rate) of the first 10,000 optimiser steps, float64, and
  `steps_<step>.npz` for each 10,000 from that step on;
- `record.json`: `class_counts`, `pauses` and `recognised`, as in a Record;
- `rules.json`: the outcomes of the rules, and `rules/<name>.json` for each as SageMaker writes it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from imgcls.debug.observations import Observation, Record
from imgcls.debug.rules import Outcome
from imgcls.debug.series import Series
from imgcls.errors import UserError
from imgcls.runs.reading import join_steps, step_files
from imgcls.system.files import atomic_write_bytes, atomic_write_text

STEPS_IN_A_FILE = 10_000


def write_observations(folder: Path, observations: Sequence[Observation]) -> None:
    """Write `observations` to a file of their own; a resumed run overwrites the steps that it repeats."""
    if observations:
        lines = "".join(json.dumps(asdict(observation)) + "\n" for observation in observations)
        atomic_write_text(_file(folder, observations[0].step), lines)


def replace_observations(folder: Path, observations: Sequence[Observation]) -> None:
    """Write `observations` and remove all others, which belong to an earlier attempt at this training."""
    before = set(folder.glob("observations/*.jsonl"))
    write_observations(folder, observations)
    for file in before - {_file(folder, observations[0].step)} if observations else before:
        file.unlink(missing_ok=True)


def read_observations(folder: Path) -> list[Observation]:
    """The observations written by `write_observations`; each step once, as it was written last."""
    observations: dict[int, Observation] = {}
    for file in sorted(folder.glob("observations/*.jsonl"), key=lambda file: file.stat().st_mtime_ns):
        for line in file.read_text(encoding="utf-8").splitlines():
            values: dict[str, Any] = json.loads(line)
            names = {name: tuple(values[name]) for name in ("infinite", "nan")}
            observations[values["step"]] = Observation(**{**values, **names})
    return [observations[step] for step in sorted(observations)]


def write_steps(folder: Path, record: Record, written: int = 0) -> None:
    """Write `record.json` and the steps of `record`, of which the first `written` are there: it takes their time alone.

    Without any, what an earlier attempt at this training has written is replaced.
    """
    others = set(step_files(folder)) if not written else set()
    for first in range(written - written % STEPS_IN_A_FILE, max(1, len(record.losses)), STEPS_IN_A_FILE):
        part, content = slice(first, first + STEPS_IN_A_FILE), io.BytesIO()
        np.savez(content, loss=np.array(record.losses[part]), rate=np.array(record.rates[part]))
        file = folder / (f"steps_{first:09}.npz" if first else "steps.npz")
        atomic_write_bytes(file, content.getvalue())
        others.discard(file)
    for file in others:
        file.unlink(missing_ok=True)
    facts = {name: getattr(record, name) for name in ("class_counts", "pauses", "recognised")}
    atomic_write_text(folder / "record.json", json.dumps(facts) + "\n")


def write_rules(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """Write `rules.json`, which the report reads."""
    atomic_write_text(folder / "rules.json", json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")


def write_rule_files(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """Write a file per rule in `folder`/rules, as SageMaker does."""
    for outcome in outcomes:
        atomic_write_text(folder / "rules" / f"{outcome.rule}.json", json.dumps(outcome.as_sagemaker()) + "\n")


def write_outcomes(folder: Path, outcomes: Collection[Outcome]) -> None:
    """Write `rules.json` and the files per rule."""
    write_rules(folder, outcomes)
    write_rule_files(folder, outcomes)


def read_record(folder: Path, history: Sequence[Mapping[str, float]]) -> Record:
    """The record stored in `folder`, with the epochs of `metrics.csv` as `history`.

    Raises UserError if there is no record, or if it cannot be read.
    """
    if not step_files(folder):
        raise UserError(f"{folder} holds no record of a training. Was it run with debug=off?")
    try:
        steps = join_steps(folder)
        losses, rates = Series(steps["loss"].tolist()), Series(steps["rate"].tolist())
        facts = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        return Record(
            observations=tuple(
                observation for observation in read_observations(folder) if observation.step < len(losses)
            ),
            losses=losses,
            rates=rates,
            history=tuple(history),
            class_counts=tuple(facts["class_counts"]),
            pauses=tuple((int(step), float(seconds)) for step, seconds in facts["pauses"]),
            recognised=tuple((int(count), int(correct)) for count, correct in facts["recognised"]),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise UserError(f"The record in {folder} cannot be read: {type(error).__name__}: {error}.") from error


def _file(folder: Path, step: int) -> Path:
    return folder / "observations" / f"{step:09}.jsonl"
