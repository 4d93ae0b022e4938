"""What a search says: a line for each finished trial, and at the end a table, `sweep.csv` and `best.yaml`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imgcls.runs.tables import as_csv
from imgcls.sweeps.remote_search import Search, Trial
from imgcls.system.files import atomic_write_text

TOP = 10  # rows of the table on the terminal
STATES = {"complete": "complete", "pruned": "pruned", "fail": "failed", "running": "running", "waiting": "waiting"}


def best_trials(study: Search) -> list[Any]:
    """The best complete trial; with several objectives all that no other one beats in each, by the first objective."""
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    signs = [-1.0 if way == "max" else 1.0 for way in study.options.objectives.values()]

    def costs(trial: Trial) -> list[float]:
        return [sign * value for sign, value in zip(signs, trial.values, strict=True)]

    ordered = sorted(complete, key=lambda trial: (costs(trial), trial.number))
    if len(signs) == 1:
        return ordered[:1]
    return [one for one in ordered if not any(_beats(costs(other), costs(one)) for other in ordered)]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return list(one) != list(other) and all(left <= right for left, right in zip(one, other, strict=True))


class Announcer:
    """Prints one line for each trial that has finished since the last call, whoever ran it, and keeps the files fresh.

    Args:
        study: the study.
        fixed: the overrides that all trials share.
        say: takes a line.
    """

    def __init__(self, study: Search, fixed: Sequence[str], say: Callable[[str], None]) -> None:
        self.study, self.fixed, self.say = study, fixed, say
        done = [trial for trial in study.trials if trial.state.is_finished()]
        self._told = {trial.number for trial in done}
        begun = f"Going on with the search {study.name}: {len(done)} of" if done else f"Search {study.name}:"
        say(f"{begun} {study.total} trials{' are finished' if done else ''}, in {relative(study.folder)}")

    def __call__(self) -> None:
        """Tell what is new."""
        trials = self.study.trials
        new = [trial for trial in trials if trial.state.is_finished() and trial.number not in self._told]
        for trial in sorted(new, key=lambda trial: (trial.datetime_complete, trial.number)):
            self._told.add(trial.number)
            self.say(self._line(trial, trials))
        if new:
            write(self.study, self.fixed)

    def _line(self, trial: Trial, trials: Sequence[Trial]) -> str:
        result = " ".join(
            f"{name}={value:.6g}"
            for name, value in zip(self.study.options.objectives, trial.values or [], strict=False)
        )
        if trial.state.name != "COMPLETE":
            reason = trial.user_attrs.get("reason")
            result = STATES[trial.state.name.lower()] + (f" ({reason})" if reason else "")
        best = best_trials(self.study)
        so_far = f" | best {best[0].values[0]:.6g} (trial {best[0].number})" if best else ""
        left = self._seconds_left(trials)
        time_left = f" | about {duration(left)} left" if left else ""
        place = f"{len(self._told)}/{self.study.total} trial {trial.number}"
        return f"{place}: {result} {shown(trial.params)}{so_far}{time_left}"

    def _seconds_left(self, trials: Sequence[Trial]) -> float:
        done = [one.duration.total_seconds() for one in trials if one.state.is_finished() and one.duration is not None]
        running = sum(one.state.name == "RUNNING" for one in trials)
        left = self.study.total - len(self._told)
        at_once = min(max(1, left), max(running, self.study.options.workers))
        return sum(done) / len(done) * left / at_once if done else 0.0


def shown(values: Mapping[str, Any]) -> str:
    """`values` in one line.

    >>> shown({"optim.lr": 0.0123456, "model": "resnet18", "model.pretrained": True})
    'optim.lr=0.01235 model=resnet18 model.pretrained=true'
    """
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={json.dumps(value).strip(chr(34))}"
        for name, value in values.items()
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(42), duration(150), duration(7500)
    ('42 s', '2 min 30 s', '2 h 5 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def rows(study: Search) -> list[dict[str, Any]]:
    """One row a trial, as in `sweep.csv`."""
    found = []
    for trial in study.trials:
        facts = trial.user_attrs
        values = trial.values if trial.state.name == "COMPLETE" else None
        row: dict[str, Any] = {"trial": trial.number, "state": STATES[trial.state.name.lower()]}
        row.update(dict(zip(study.options.objectives, values or [""] * len(study.options.objectives), strict=True)))
        row.update({name: trial.params.get(name, "") for name in study.space.names})
        row.update({name: facts.get(name, "") for name in ("epochs", "best_epoch")})
        row["seconds"] = round(trial.duration.total_seconds(), 3) if trial.duration is not None else ""
        row["reason"] = facts.get("reason", "")
        row["folder"] = os.path.relpath(facts["folder"], study.folder) if "folder" in facts else ""
        found.append(row)
    return found


def write(study: Search, fixed: Sequence[str]) -> None:
    """Write `sweep.csv` and, once a trial is complete, `best.yaml`.

    Args:
        study: the study.
        fixed: the overrides that all trials share.
    """
    import yaml

    atomic_write_text(study.folder / "sweep.csv", as_csv(rows(study)))
    best = best_trials(study)
    if best:
        trial = best[0]
        content = {
            "overrides": [*fixed, *study.space.words(trial.params)],
            "values": study.space.typed(trial.params),
            "objective": dict(zip(study.options.objectives, trial.values, strict=True)),
            "trial": trial.number,
        }
        file = study.folder / "best.yaml"
        note = f"# The best trial of the search {study.name}. Train it: python -m imgcls.train {relative(file)}\n"
        atomic_write_text(file, note + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def summary(study: Search) -> str:
    """The best trials as a table, and where everything is."""
    best = [trial.number for trial in best_trials(study)]
    objectives = study.options.objectives
    first, way = next(iter(objectives.items()))
    every = rows(study)
    table = [row for row in every if row["state"] == "complete"]
    table.sort(key=lambda row: (row["trial"] not in best, (-1 if way == "max" else 1) * row[first]))
    head = ["trial", *objectives, *study.space.names, "epochs", "seconds"]
    cells = [head, *([_cell(row[name]) for name in head] for row in table[:TOP])]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    counted = [row["state"] for row in every]
    counts = ", ".join(f"{counted.count(state)} {state}" for state in STATES.values() if state in counted)
    where = [f"{len(every)} trials: {counts}"]
    if len(best) > 1:
        where.append(f"the first {min(len(best), TOP)} are the best compromises: none is beaten in every objective")
    for label, name in (("table", "sweep.csv"), ("best", "best.yaml"), ("report", "sweep.html")):
        if (study.folder / name).is_file():
            where.append(f"{label:8}{relative(study.folder / name)}")
    return "\n".join(["", *(lines if table else ["No trial is complete."]), "", *where])


def relative(file: Path) -> str:
    """`file` seen from where the command runs, if that is shorter."""
    return min(str(file), os.path.relpath(file), key=len)


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
