"""What was recorded of a training, on disk: written while it runs, read when rules look at it again.

In the folder `debug` of a run lie

- `observations/<step>.jsonl`: observed steps, one JSON object a line, in files named by their first one;
- `steps.npz`: `loss` and `rate` (the learning rate) of every optimiser step, float64;
- `record.json`: `class_counts`, `pauses` and `recognised`, as a Record has them;
- `rules.json`: what the rules found, and `rules/<name>.json` for each as SageMaker writes it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from imgcls.debug.observations import Observation, Record
from imgcls.debug.rules import Outcome
from imgcls.errors import UserError
from imgcls.system.files import atomic_write_bytes, atomic_write_text


def write_observations(folder: Path, observations: Sequence[Observation]) -> None:
    """A file of its own for `observations`; a resumed run writes steps that it repeats over."""
    if observations:
        lines = "".join(json.dumps(asdict(one)) + "\n" for one in observations)
        atomic_write_text(_file(folder, observations[0].step), lines)


def replace_observations(folder: Path, observations: Sequence[Observation]) -> None:
    """Let `folder` hold these `observations` and no others: those of an earlier attempt are not of this training."""
    before = set(folder.glob("observations/*.jsonl"))
    write_observations(folder, observations)
    for file in before - {_file(folder, observations[0].step)} if observations else before:
        file.unlink(missing_ok=True)


def read_observations(folder: Path) -> list[Observation]:
    """What `write_observations` wrote; each step once, as it was written last."""
    found: dict[int, Observation] = {}
    for file in sorted(folder.glob("observations/*.jsonl"), key=lambda file: file.stat().st_mtime_ns):
        for line in file.read_text(encoding="utf-8").splitlines():
            values: dict[str, Any] = json.loads(line)
            sets = {name: tuple(values[name]) for name in ("infinite", "nan")}
            found[values["step"]] = Observation(**{**values, **sets})
    return [found[step] for step in sorted(found)]


def write_steps(folder: Path, record: Record) -> None:
    """`steps.npz` and `record.json` of `record`."""
    content = io.BytesIO()
    np.savez(content, loss=np.asarray(record.losses, np.float64), rate=np.asarray(record.rates, np.float64))
    atomic_write_bytes(folder / "steps.npz", content.getvalue())
    facts = {name: getattr(record, name) for name in ("class_counts", "pauses", "recognised")}
    atomic_write_text(folder / "record.json", json.dumps(facts) + "\n")


def write_rules(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """`rules.json`, for the report."""
    atomic_write_text(folder / "rules.json", json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")


def write_outcomes(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """`rules.json`, and for each rule a file as SageMaker writes it, in `folder`."""
    write_rules(folder, outcomes)
    for outcome in outcomes:
        atomic_write_text(folder / "rules" / f"{outcome.rule}.json", json.dumps(outcome.as_sagemaker()) + "\n")


def read_record(folder: Path, history: Sequence[Mapping[str, float]]) -> Record:
    """Everything that was recorded in `folder`, with the epochs of `metrics.csv`.

    Raises UserError where nothing was recorded, and where it cannot be read.
    """
    if not (folder / "steps.npz").is_file():
        raise UserError(f"{folder} holds no record of a training: was it run with debug=off?")
    try:
        with np.load(folder / "steps.npz", allow_pickle=False) as steps:
            losses, rates = tuple(steps["loss"].tolist()), tuple(steps["rate"].tolist())
        facts = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        return Record(
            observations=tuple(one for one in read_observations(folder) if one.step < len(losses)),
            losses=losses,
            rates=rates,
            history=tuple(history),
            class_counts=tuple(facts["class_counts"]),
            pauses=tuple((int(step), float(seconds)) for step, seconds in facts["pauses"]),
            recognised=tuple((int(count), int(right)) for count, right in facts["recognised"]),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise UserError(f"The record in {folder} cannot be read: {type(error).__name__}: {error}.") from error


def _file(folder: Path, step: int) -> Path:
    return folder / "observations" / f"{step:09}.jsonl"
