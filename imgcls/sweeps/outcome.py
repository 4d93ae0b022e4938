"""What a search prints and writes: a line for each finished trial, then a table, `sweep.csv` and `best.yaml`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from imgcls.sweeps.remote_search import Search
from imgcls.system.files import atomic_write_text
from imgcls.system.tables import as_csv
from imgcls.system.text import duration

MAX_ROWS = 10  # of the table on the terminal
STATES = {"complete": "complete", "pruned": "pruned", "fail": "failed", "running": "running", "waiting": "waiting"}


def best_trials(study: Search) -> list[Any]:
    """The best complete trial; of several objectives, the Pareto front, ordered by the first objective."""
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    signs = [-1.0 if way == "max" else 1.0 for way in study.options.objectives.values()]

    def costs(trial: Any) -> list[float]:
        return [sign * value for sign, value in zip(signs, trial.values, strict=True)]

    if len(signs) == 1:
        return [min(complete, key=lambda trial: (costs(trial), trial.number))] if complete else []
    ordered = sorted(complete, key=lambda trial: (costs(trial), trial.number))
    front: list[Any] = []
    for trial in ordered:  # what dominates a trial comes before it, and so does one of the front that dominates it
        if not any(_dominates(costs(other), costs(trial)) for other in front):
            front.append(trial)
    return front


def _dominates(costs: list[float], others: list[float]) -> bool:
    return costs != others and all(cost <= other for cost, other in zip(costs, others, strict=True))


class Announcer:
    """Prints a line for each trial that has finished since the last call, in any process, and updates the files."""

    def __init__(self, study: Search, fixed: Sequence[str]) -> None:
        self.study, self.fixed = study, fixed
        self._lines: dict[int, tuple[Any, str]] = {}
        self._announced = {trial.number for trial in study.trials if trial.state.is_finished()}
        done = len(self._announced)
        begin = f"Resuming the search {study.name}: {done} of" if done else f"Search {study.name}:"
        finished = " are finished" if done else ""
        print(f"{begin} {study.total} trials{finished}, in {relative(study.folder)}", flush=True)

    def __call__(self) -> None:
        """Announce the new trials."""
        trials = self.study.trials
        new = [trial for trial in trials if trial.state.is_finished() and trial.number not in self._announced]
        if not new:
            return
        best, seconds = best_trials(self.study)[:1], self._seconds_each(trials)
        for trial in sorted(new, key=lambda trial: (trial.datetime_complete, trial.number)):
            self._announced.add(trial.number)
            print(self._line(trial, best, seconds), flush=True)
        write(self.study, self.fixed, self._lines, best)

    def _line(self, trial: Any, best: Sequence[Any], seconds: float) -> str:
        values = zip(self.study.options.objectives, trial.values or [], strict=False)
        result = " ".join(f"{name}={value:.6g}" for name, value in values)
        if trial.state.name != "COMPLETE":
            reason = trial.user_attrs.get("reason")
            result = STATES[trial.state.name.lower()] + (f" ({reason})" if reason else "")
        so_far = f" | best {best[0].values[0]:.6g} (trial {best[0].number})" if best else ""
        left = self.study.total - len(self._announced)
        time_left = f" | about {duration(seconds * left)} left" if seconds and left else ""
        place = f"{len(self._announced)}/{self.study.total} trial {trial.number}"
        return f"{place}: {result} {shown(trial.params)}{so_far}{time_left}"

    def _seconds_each(self, trials: Sequence[Any]) -> float:
        """Seconds until the next trial, in the mean, of those that run at the same time."""
        finished = [trial for trial in trials if trial.state.is_finished()]
        done = [trial.duration.total_seconds() for trial in finished if trial.duration]
        running = sum(trial.state.name == "RUNNING" for trial in trials)
        left = self.study.total - len(finished)
        at_once = min(max(1, left), max(running, self.study.options.workers))
        return sum(done) / len(done) / at_once if done else 0.0


def shown(values: Mapping[str, Any]) -> str:
    """`values` in one line, rounded.

    >>> shown({"optim.lr": 0.0123456, "model": "resnet18", "model.pretrained": True})
    'optim.lr=0.01235 model=resnet18 model.pretrained=true'
    """
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={json.dumps(value).strip(chr(34))}"
        for name, value in values.items()
    )


def rows(study: Search) -> list[dict[str, Any]]:
    """One row per trial that has been created, as in `sweep.csv`."""
    return [_row(study, trial) for trial in study.trials]


def _row(study: Search, trial: Any) -> dict[str, Any]:
    facts = trial.user_attrs
    values = trial.values if trial.state.name == "COMPLETE" else None
    row: dict[str, Any] = {"trial": trial.number, "state": STATES[trial.state.name.lower()]}
    row.update(dict(zip(study.options.objectives, values or [""] * len(study.options.objectives), strict=True)))
    row.update({name: trial.params.get(name, "") for name in study.space.names})
    row.update({name: facts.get(name, "") for name in ("epochs", "best_epoch")})
    row["seconds"] = round(trial.duration.total_seconds(), 3) if trial.duration is not None else ""
    row["reason"] = facts.get("reason", "")
    row["folder"] = os.path.relpath(facts["folder"], study.folder) if "folder" in facts else ""
    return row


def write(
    study: Search,
    fixed: Sequence[str],
    lines: dict[int, tuple[Any, str]] | None = None,
    best: Sequence[Any] | None = None,
) -> None:
    """Write `sweep.csv` and, once a trial is complete, `best.yaml`.

    Args:
        study: the search.
        fixed: the overrides that all trials share.
        lines: of `sweep.csv`, with the finished trials that they describe; kept for the next call.
        best: of `best_trials`, if it has been asked for.
    """
    lines = {} if lines is None else lines
    head, table = "", []
    for trial in study.trials:
        known, line = lines.get(trial.number, (None, ""))
        if known is not trial or not head:
            head, _, line = as_csv([_row(study, trial)]).partition("\n")
            if trial.state.is_finished():
                lines[trial.number] = trial, line
        table.append(line)
    atomic_write_text(study.folder / "sweep.csv", "".join([head, "\n", *table]))
    for trial in (best_trials(study) if best is None else best)[:1]:
        content = {
            "overrides": [*fixed, *study.space.overrides(trial.params)],
            "values": study.space.typed(trial.params),
            "objective": dict(zip(study.options.objectives, trial.values, strict=True)),
            "trial": trial.number,
        }
        file = study.folder / "best.yaml"
        note = f"# The best trial of the search {study.name}. Train it: python -m imgcls.train {relative(file)}\n"
        atomic_write_text(file, note + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def summary(study: Search) -> str:
    """The best trials as a table, and where the files are."""
    best = [trial.number for trial in best_trials(study)]
    objectives = study.options.objectives
    first, way = next(iter(objectives.items()))
    all_rows = rows(study)
    table = [row for row in all_rows if row["state"] == "complete"]
    table.sort(key=lambda row: (row["trial"] not in best, (-1 if way == "max" else 1) * row[first]))
    head = ["trial", *objectives, *study.space.names, "epochs", "seconds"]
    cells = [head, *([cell_text(row[name]) for name in head] for row in table[:MAX_ROWS])]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    counts = ", ".join(f"{count} {state}" for state, count in count_states(all_rows).items())
    where = [f"{len(all_rows)} trials: {counts}"]
    if len(best) > 1:
        where.append(f"the first {min(len(best), MAX_ROWS)} are the best compromises (the Pareto front)")
    for label, name in (("table", "sweep.csv"), ("best", "best.yaml"), ("report", "sweep.html")):
        if (study.folder / name).is_file():
            where.append(f"{label:8}{relative(study.folder / name)}")
    return "\n".join(["", *(lines if table else ["No trial is complete."]), "", *where])


def count_states(table: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many of the `rows` of a search have each state, without those that none has."""
    states = [row["state"] for row in table]
    return {state: states.count(state) for state in STATES.values() if state in states}


def relative(file: Path) -> str:
    """`file` relative to the working directory, if that is shorter."""
    return min(str(file), os.path.relpath(file), key=len)


def cell_text(value: Any) -> str:
    """`value` in a table, rounded."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
