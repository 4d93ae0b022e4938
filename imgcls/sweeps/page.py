"""`sweep.html`: what a search found, on one self-contained page."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from imgcls.report import page
from imgcls.report.blocks import Blocks, Figure, Table, Text
from imgcls.report.figures import Chart
from imgcls.report.headline import format_with_bounds
from imgcls.runs.reading import read_metrics
from imgcls.sweeps import figures, outcome
from imgcls.sweeps.figures import Point
from imgcls.sweeps.remote_search import Search
from imgcls.sweeps.selection import correction_of
from imgcls.system.positions import spread_positions
from imgcls.system.text import duration

MAX_ROWS = 1000  # of the table; sweep.csv has all
MAX_WEIGHED = 500  # trials by which importance is measured, since fANOVA takes time by their square: a minute for 2,000
WIDE_REM = 34.0  # below which parallel coordinates cannot be read: a phone scrolls


def write_page(study: Search) -> Path:
    """Write `sweep.html` into the sweep's folder and return its path. A section that cannot be drawn says why."""
    points, best = _points(study), outcome.best_trials(study)
    sections: dict[str, Blocks] = {}
    for title, charts in _charts(study, points).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wide = WIDE_REM if title.startswith("Parallel") else 0
                sections[title] = [Figure.of(*(chart() for chart in charts), wide_rem=wide)]
        except Exception as error:  # too few trials, or equal values: the other sections are still worth it
            reason = " ".join(str(error).split()) or type(error).__name__
            sections[title] = [Text(f"This figure cannot be drawn: {reason}")]
    rows = outcome.rows(study)
    sections["Trials"] = [_table(study, rows[:MAX_ROWS], {trial.number for trial in best})]
    sentence, numbers = _sentence(study, best), _numbers(study, rows)
    return page.write_page(study.folder / "sweep.html", study.name, sections, sentence=sentence, numbers=numbers)


def _points(study: Search) -> list[Point]:
    best = {trial.number for trial in outcome.best_trials(study)}
    points = []
    for trial in study.trials:
        if trial.state.name not in ("COMPLETE", "PRUNED"):
            continue
        reports = dict(trial.intermediate_values)
        complete = trial.state.name == "COMPLETE"
        values = trial.values if complete else [reports[max(reports)]] if reports else []
        points.append(Point(trial.number, tuple(values), trial.params, complete, trial.number in best, reports))
    return points


def _charts(study: Search, points: list[Point]) -> dict[str, list[Callable[[], Chart]]]:
    """The functions that draw the figures of each section, by its title."""
    objectives, space = study.options.objectives, study.space
    charts: dict[str, list[Callable[[], Chart]]] = {}
    if not any(point.complete for point in points):
        return charts
    if len(objectives) > 1:
        charts["Compromises"] = [partial(figures.compromises, points, list(objectives))]
    for place, (name, mode) in enumerate(objectives.items()):
        suffix = f" of {name}" if len(objectives) > 1 else ""
        charts |= {
            f"History{suffix}": [partial(figures.history, points, name, mode, place)],
            f"Importance{suffix}": [partial(_importance, study, name, place)],
            f"Slices{suffix}": [partial(figures.slices, points, space, name, place)],
            f"Parallel coordinates{suffix}": [partial(figures.parallel_coordinates, points, space, name, mode, place)],
        }
        if any(len(point.reports) > 1 for point in points):
            charts[f"History{suffix}"].append(partial(figures.learning_curves, points, name))
    return charts


def _importance(study: Search, name: str, place: int) -> Chart:
    """Shares of the variance by fANOVA (Hutter, Hoos and Leyton-Brown 2014), as Optuna computes them of some trials."""
    from optuna import create_study
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    some = create_study(directions=study.optuna.directions)
    some.add_trials(complete[position] for position in spread_positions(len(complete), MAX_WEIGHED))
    several = len(study.options.objectives) > 1
    target = (lambda trial: trial.values[place]) if several else None
    shares = get_param_importances(some, evaluator=FanovaImportanceEvaluator(seed=0), target=target)
    return figures.importance(shares, name)


def _sentence(study: Search, best: list[Any]) -> str:
    if not best:
        return f"None of {study.total} trials is complete."
    objectives = zip(study.options.objectives, best[0].values, strict=True)
    values = ", ".join(f"{name} {value:.5g}" for name, value in objectives)
    more = f" It is one of {len(best)} best compromises." if len(best) > 1 else ""
    folders = [
        Path(trial.user_attrs["folder"])
        for trial in study.trials
        if trial.state.name == "COMPLETE" and "folder" in trial.user_attrs
    ]
    correction = correction_of(folders, next(iter(study.options.objectives)))
    again = f" {correction.sentence(next(iter(study.options.objectives)))}" if correction is not None else ""
    if "test/accuracy" in (refit := read_metrics(study.folder / "refit")):
        again += f" Trained again, its test accuracy is {format_with_bounds('test/accuracy', refit)}."
    return f"Trial {best[0].number} is best: {values} with {outcome.shown(best[0].params)}.{more}{again}"


def _numbers(study: Search, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    counts = [(f"{state} trials", str(count)) for state, count in outcome.count_states(rows).items()]
    epochs = sum(int(trial.user_attrs.get("epochs", 0)) for trial in study.trials)
    seconds = sum(trial.duration.total_seconds() for trial in study.trials if trial.duration is not None)
    return [*counts, ("epochs trained", str(epochs)), ("time of all trials", duration(seconds))]


def _table(study: Search, rows: list[dict[str, Any]], best: set[int]) -> Table:
    head = [name for name in rows[0] if name != "folder"]
    numeric = [
        place
        for place, name in enumerate(head)
        if all(isinstance(row[name], int | float) or row[name] == "" for row in rows) and name != "reason"
    ]
    cells = []
    for row in rows:
        texts = [outcome.cell_text(row[name]) for name in head]
        report = study.folder / row["folder"] / "report.html" if row["folder"] else None
        if report is not None and report.is_file():
            address = Path(os.path.relpath(report, study.folder)).as_posix()
            texts[0] = Markup('<a href="{}">{}</a>').format(address, texts[0])
        if row["trial"] in best:
            texts[1] = Markup("<strong>best</strong>")
        cells.append(texts)
    return Table(head, cells, numeric)
