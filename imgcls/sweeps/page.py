"""`sweep.html`: what a search found, on one page that needs nothing from elsewhere."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from imgcls.report import page
from imgcls.report.figures import Chart
from imgcls.report.page import Section
from imgcls.sweeps import figures, outcome
from imgcls.sweeps.figures import Point
from imgcls.sweeps.remote_search import Search
from imgcls.sweeps.space import Space

log = logging.getLogger(__name__)

MOST = 1000  # rows of the table; sweep.csv has all
WIDE = 34.0  # rem below which parallel coordinates cannot be read: a phone scrolls


def write_page(study: Search) -> Path:
    """Write `sweep.html` into the sweep's folder and return its path. A section that cannot be drawn says why."""
    points, best = _points(study), outcome.best_trials(study)
    sections: dict[str, Section] = {}
    for title, draw in _charts(study, points).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                charts = draw()
            svgs = [svg for chart in charts for svg in chart.as_svgs()]
            sections[title] = {"svgs": svgs, "wide": WIDE if title.startswith("Parallel") else 0}
        except Exception as error:  # too few trials, values that do not differ: the others are still worth it
            reason = " ".join(str(error).split()) or type(error).__name__
            sections[title] = {"text": f"This figure cannot be drawn: {reason}"}
    sections["Trials"] = {"table": _table(study)}
    sentence, numbers = _sentence(study, points, best), _numbers(study, points)
    return page.write_page(study.folder / "sweep.html", study.name, sections, sentence=sentence, numbers=numbers)


def _points(study: Search) -> list[Point]:
    best = {trial.number for trial in outcome.best_trials(study)}
    found = []
    for trial in study.trials:
        if trial.state.name not in ("COMPLETE", "PRUNED"):
            continue
        reports = dict(trial.intermediate_values)
        complete = trial.state.name == "COMPLETE"
        values = trial.values if complete else [reports[max(reports)]] if reports else []
        found.append(Point(trial.number, tuple(values), trial.params, complete, trial.number in best, reports))
    return found


def _charts(study: Search, points: list[Point]) -> dict[str, Callable[[], list[Chart]]]:
    """How the figures of each section are drawn, by its title."""
    objectives, space = study.options.objectives, study.space
    found: dict[str, Callable[[], list[Chart]]] = {}
    if not any(point.complete for point in points):
        return found
    if len(objectives) > 1:
        found["Compromises"] = lambda: [figures.compromises(points, list(objectives))]
    for place, (name, way) in enumerate(objectives.items()):
        suffix = f" of {name}" if len(objectives) > 1 else ""
        found |= {
            f"History{suffix}": partial(_history, points, name, way, place),
            f"Importance{suffix}": partial(_importance, study, name, place),
            f"Slices{suffix}": partial(_slices, points, space, name, place),
            f"Parallel coordinates{suffix}": partial(_parallel, points, space, name, way, place),
        }
    return found


def _history(points: list[Point], name: str, way: str, place: int) -> list[Chart]:
    charts = [figures.history(points, name, way, place)]
    if any(len(point.reports) > 1 for point in points):
        charts.append(figures.learning_curves(points, name))
    return charts


def _importance(study: Search, name: str, place: int) -> list[Chart]:
    return [figures.importance(_importances(study, place), name)]


def _slices(points: list[Point], space: Space, name: str, place: int) -> list[Chart]:
    return [figures.slices(points, space, name, place)]


def _parallel(points: list[Point], space: Space, name: str, way: str, place: int) -> list[Chart]:
    return [figures.parallel_coordinates(points, space, name, way, place)]


def _importances(study: Search, place: int) -> dict[str, float]:
    """Shares of the variance by fANOVA (Hutter, Hoos and Leyton-Brown 2014), as Optuna computes them."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    several = len(study.options.objectives) > 1
    return get_param_importances(
        study.optuna,
        evaluator=FanovaImportanceEvaluator(seed=0),
        target=(lambda trial: trial.values[place]) if several else None,
    )


def _sentence(study: Search, points: list[Point], best: list[Any]) -> str:
    if not best:
        return f"None of {study.total} trials is complete."
    values = ", ".join(
        f"{name} {value:.5g}" for name, value in zip(study.options.objectives, best[0].values, strict=True)
    )
    more = f" It is one of {len(best)} best compromises." if len(best) > 1 else ""
    return f"Trial {best[0].number} is best: {values} with {outcome.shown(best[0].params)}.{more}"


def _numbers(study: Search, points: list[Point]) -> list[tuple[str, str]]:
    states = [row["state"] for row in outcome.rows(study)]
    told = [(f"{state} trials", str(states.count(state))) for state in outcome.STATES.values() if state in states]
    epochs = sum(int(trial.user_attrs.get("epochs", 0)) for trial in study.trials)
    seconds = sum(trial.duration.total_seconds() for trial in study.trials if trial.duration is not None)
    return [*told, ("epochs trained", str(epochs)), ("time of all trials", outcome.duration(seconds))]


def _table(study: Search) -> dict[str, Any]:
    from markupsafe import Markup

    rows = outcome.rows(study)[:MOST]
    head = [name for name in rows[0] if name != "folder"]
    numeric = [
        place
        for place, name in enumerate(head)
        if all(isinstance(row[name], int | float) or row[name] == "" for row in rows) and name != "reason"
    ]
    best = {trial.number for trial in outcome.best_trials(study)}
    cells = []
    for row in rows:
        shown = [f"{row[name]:.5g}" if isinstance(row[name], float) else str(row[name]) for name in head]
        report = study.folder / row["folder"] / "report.html" if row["folder"] else None
        if report is not None and report.is_file():
            address = Path(os.path.relpath(report, study.folder)).as_posix()
            shown[0] = Markup('<a href="{}">{}</a>').format(address, shown[0])
        if row["trial"] in best:
            shown[1] = Markup("<strong>best</strong>")
        cells.append(shown)
    return {"head": head, "numeric": numeric, "rows": cells}
