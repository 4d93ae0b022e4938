"""From a run folder to its report."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.report import figures
from imgcls.report.calibration import calibrate, expected_error
from imgcls.report.selection import most_wrong, samples
from imgcls.runs.reading import (
    class_names,
    read_confusion,
    read_history,
    read_json,
    read_metrics,
    read_predictions,
    read_status,
    read_steps,
    read_table,
)
from imgcls.system.files import atomic_write_bytes, atomic_write_text

log = logging.getLogger(__name__)

SHOWN = {
    "test/accuracy": "test accuracy",
    "test/accuracy_top5": "top-5 accuracy",
    "test/macro_f1": "macro F1",
    "test/loss": "test loss",
    "test/ece": "calibration error",
    "val/accuracy": "validation accuracy",
    "best_epoch": "best epoch",
    "images_per_second": "images per second",
    "data_wait_fraction": "time waiting for data",
}
PERCENT = ("accuracy", "accuracy_top5", "data_wait_fraction")
MOST_ROWS = 20  # of the tables of errors, files and duplicates
MOST_PIXELS = 500  # classes of a confusion matrix that is drawn whole
WORST_CLASSES = 200  # that are drawn of a larger one
LOG_LINES = 40  # that are shown of a run that did not finish
PARTS = ("text", "svgs", "wide", "matrix", "outcomes", "silent", "pictures", "table", "fold", "more", "strip", "pre")
Section = dict[str, Any]


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` of the run in `folder`; return the page's path.

    A section that cannot be made is a warning and a sentence on the page.
    """
    sections = {name: _tried(folder, name, make) for name, (_, make) in SECTIONS.items()}
    shown = {SECTIONS[name][0]: section for name, section in sections.items() if section is not None}
    return write_page(folder / "report.html", folder.resolve().name, shown, **_headline(folder))


def write_page(
    output: Path, title: str, sections: Mapping[str, Section], *, sentence: str, numbers: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write a page of `sections`, each by its title; return its path."""
    shown = [
        {**dict.fromkeys(PARTS), "id": name.lower().replace(" ", "-"), "title": name, **section}
        for name, section in sections.items()
    ]
    page = render("report.html.j2", title=title, sections=shown, sentence=sentence, numbers=numbers)
    atomic_write_text(output, page)
    return output


def drawn(section: Section) -> Section:
    """`section` with its `charts` as they are on a page."""
    charts = section.get("charts", {})
    return {**section, "svgs": [svg for chart in charts.values() for svg in chart.as_svgs()]}


def render(template: str, **content: Any) -> str:
    """One of this package's pages."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def number(name: str, value: Any) -> str:
    """A metric as a reader wants it."""
    if name == "best_epoch":
        return str(int(value) + 1)
    if name.rpartition("/")[2] in PERCENT:
        return f"{value:.2%}"
    return f"{value:.4g}"


def _tried(folder: Path, name: str, make: Callable[[Path], Section | None]) -> Section | None:
    try:
        section = make(folder)
        for title, chart in section.get("charts", {}).items() if section else ():
            atomic_write_bytes(folder / "figures" / f"{title}.png", chart.as_png())
        return drawn(section) if section else None
    except Exception as error:  # a finished training must not fail on its report
        log.warning("Report: the section %r of %s failed. %s: %s", name, folder, type(error).__name__, error)
        return {"text": f"This section could not be drawn: {type(error).__name__}: {error}."}


def _headline(folder: Path) -> dict[str, Any]:
    metrics, status = read_metrics(folder), read_status(folder)
    history, classes = read_history(folder), len(class_names(folder))
    if "test/accuracy" in metrics:
        pictures = len(read_predictions(folder))
        sentence = f"{metrics['test/accuracy']:.2%} of {pictures} test pictures of {classes} classes are recognised."
    elif "val/accuracy" in metrics:
        sentence = f"{metrics['val/accuracy']:.2%} of the validation pictures are recognised; there was no test."
    elif history and "val/accuracy" in history[-1]:
        last = history[-1]
        sentence = (
            f"No result yet: after {len(history)} epoch{'s' if history[1:] else ''}, {last['val/accuracy']:.2%} "
            "of the validation pictures are recognised."
        )
    else:
        sentence = "The run has no result yet."
    state, stopped = status.get("state", "unknown"), read_json(folder / "debug" / "stopped.json")
    if state not in ("finished", "running"):
        words = {"failed": "has failed", "interrupted": "was interrupted"}.get(state, f"is {state}")
        sentence += f" The run {words}{': ' + str(status['reason']).rstrip('.') if status.get('reason') else ''}."
    if stopped:
        sentence += f" The rule {stopped['rule']} ended the training: {stopped['sentence']}"
    numbers = [(label, number(name, metrics[name])) for name, label in SHOWN.items() if name in metrics]
    return {"sentence": sentence, "numbers": numbers}


def _curves(folder: Path) -> Section | None:
    history, held = read_history(folder), read_steps(folder)
    steps = figures.Steps(held["loss"], held["rate"]) if held else None
    if not history and (steps is None or len(steps.loss) < 2):
        return None
    return {"charts": {"curves": figures.learning_curves({folder.name: history}, steps)}}


def _confusion(folder: Path) -> Section | None:
    names = class_names(folder)
    if not names:
        return None
    counts = read_confusion(folder)
    pairs = _most_confused(counts, names)
    section: Section = {
        "table": {"head": ["shown", "seen", "pictures"], "numeric": [2], "rows": pairs},
        "text": "" if pairs else "No test picture was taken for another class.",
    }
    if len(names) <= figures.MOST_CLASSES:
        section["charts"] = {"confusion": figures.confusion_matrix(counts, names)}
        section["wide"] = 6 + 1.5 * len(names)
        return section
    if len(names) > MOST_PIXELS:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        worst = np.sort(np.argsort(-errors, kind="stable")[:WORST_CLASSES])
        counts, names = counts[np.ix_(worst, worst)], [names[place] for place in worst]
        section["text"] = f"The matrix shows the {WORST_CLASSES} classes with the most errors."
    image = figures.confusion_pixels(counts)
    atomic_write_bytes(folder / "figures" / "confusion.png", image)
    cells = {f"{row},{column}": int(counts[row, column]) for row, column in zip(*np.nonzero(counts), strict=True)}
    section["matrix"] = {"image": base64.b64encode(image).decode(), "names": names, "cells": cells}
    return section


def _classes(folder: Path) -> Section | None:
    rows = sorted(read_table(folder / "per_class.csv"), key=lambda row: float(row["accuracy"] or 2))
    cells = [
        [row["class"], row["pictures"], f"{float(row['accuracy']):.2%}" if row["accuracy"] else ""] for row in rows
    ]
    table = {"head": ["class", "test pictures", "accuracy"], "numeric": [1, 2], "rows": cells}
    return {"table": table, "fold": len(rows) > 40} if rows else None


def _calibration(folder: Path) -> Section | None:
    predictions = read_predictions(folder)
    if not predictions:
        return None
    sure = np.array([float(row["confidence"]) for row in predictions])
    right = np.array([float(row["correct"]) for row in predictions])
    section: Section = {"charts": {"calibration": figures.reliability(sure, right)}}
    logits, places = folder / "test_logits.npy", {name: place for place, name in enumerate(class_names(folder))}
    if logits.is_file() and len(predictions) > 1:
        labels = np.array([places[row["label"]] for row in predictions])
        found = calibrate(np.load(logits, allow_pickle=False), labels)
        told = f"The expected calibration error is {found.before:.4f}. "
        if found.after < found.before:
            side = "too sure of itself" if found.temperature > 1 else "less sure than it could be"
            told += (
                f"The model is {side}: dividing its scores by the temperature {found.temperature:.2f} would make it "
                f"{found.after:.4f}. "
            )
        else:
            told += f"No temperature would mend it: the best one, {found.temperature:.2f}, makes it {found.after:.4f}. "
        section["text"] = told + (
            "The temperature is fitted on the test pictures themselves (each half of them is judged with the "
            "temperature of the other half), so fit it on pictures of your own before you rely on it."
        )
    else:
        section["text"] = f"The expected calibration error is {expected_error(sure, right):.4f}."
    return section


def _pictures_of(rows: list[dict[str, str]], folder: Path) -> list[dict[str, str]]:
    held = read_json(folder / "report_data" / "pictures.json")
    return [
        {
            "image": held.get(row["file"], ""),
            "file": row["file"],
            "shown": row["label"],
            "seen": row["predicted"],
            "note": f"{float(row['confidence']):.0%} sure",
            "wrong": "" if row["correct"] == "1" else "yes",
        }
        for row in rows
    ]


def _wrong(folder: Path) -> Section | None:
    rows = most_wrong(read_predictions(folder))
    return {"pictures": _pictures_of(rows, folder)} if rows else None


def _samples(folder: Path) -> Section | None:
    rows = samples(read_predictions(folder))
    return {"pictures": _pictures_of(rows, folder)} if rows else None


def _gradcam(folder: Path) -> Section | None:
    held = read_json(folder / "report_data" / "gradcam.json")
    if not held.get("pictures"):
        return {"text": held["reason"]} if held.get("reason") else None
    shown = [
        {**one, "file": name, "note": "", "wrong": "" if one["seen"] == one["shown"] else "yes"}
        for name, one in held["pictures"].items()
    ]
    return {"text": "Bright is what spoke for the class that was seen (Grad-CAM).", "pictures": shown}


def _data(folder: Path) -> Section | None:
    held, bad = read_json(folder / "report_data" / "counts.json"), read_table(folder / "bad_files.csv")
    section: Section = {"text": " ".join(held.get("notes", []))}
    if held.get("splits"):
        splits = held["splits"]
        rows = [
            [name, *(str(counts[place]) for counts in splits.values())] for place, name in enumerate(held["classes"])
        ]
        total = ["all", *(str(sum(counts)) for counts in splits.values())]
        numeric = list(range(1, len(total)))
        section["table"] = {"head": ["pictures of", *splits], "numeric": numeric, "rows": rows, "total": total}
        section["fold"] = len(rows) > 15
    left_out = f"{len(bad)} files were left out" if bad[1:] else "A file was left out"
    tables = [_listed(left_out, bad, "bad_files.csv")] if bad else []
    twins = read_json(folder / "report_data" / "duplicates.json")
    if twins.get("rows"):
        title = f"{twins['found']} pictures are in two splits" if twins["found"] > 1 else "A picture is in two splits"
        tables.append(_listed(title, twins["rows"], "report_data/duplicates.json", twins["found"]))
    section["text"] = " ".join([section["text"], twins.get("note", "")]).strip()
    section["more"] = tables
    augmented = read_json(folder / "report_data" / "augmented.json").get("pictures", [])
    section["strip"] = augmented
    return section if held.get("splits") or bad or augmented else None


def _listed(title: str, rows: Sequence[Mapping[str, str]], file: str, count: int | None = None) -> Section:
    """A table of the first of `rows`, whose keys are the head of the columns."""
    left = (count or len(rows)) - MOST_ROWS
    note = f"… and {left} more in {file}" if left > 0 else ""
    cells = [[str(cell) for cell in row.values()] for row in rows[:MOST_ROWS]]
    return {"title": title, "head": list(rows[0]), "rows": cells, "note": note}


def _rules(folder: Path) -> Section | None:
    outcomes = read_json(folder / "debug" / "rules.json")
    return outcome_section(outcomes) if outcomes else None


def outcome_section(outcomes: Sequence[Mapping[str, Any]]) -> Section:
    """What rules found, from outcomes as in `rules.json`."""
    found = [one for one in outcomes if one["status"] != "NoIssuesFound"]
    silent = ", ".join(one["rule"] for one in outcomes if one["status"] == "NoIssuesFound")
    text = (
        f"{len(found)} of {len(outcomes)} rules found something." if found else f"{len(outcomes)} rules found nothing."
    )
    return {"text": text, "outcomes": found, "silent": silent}


def _profile(folder: Path) -> Section | None:
    profile = read_json(folder / "debug" / "profile" / "profile.json")
    return profile_section(profile) if profile else None


def profile_section(profile: Mapping[str, Any]) -> Section:
    """Where the time went, from the content of `profile.json`."""
    section = outcome_section(profile.get("rules", []))
    section["charts"] = {"profile": figures.profile_shares(profile)}
    spread = ("max", "p99", "p95", "p50", "min")
    rows = [[f"{one['name']}, {one['unit']}", *(f"{one[name]:.4g}" for name in spread)] for one in profile["system"]]
    section["table"] = {"head": ["resource", *spread], "numeric": [1, 2, 3, 4, 5], "rows": rows}
    return section


def _configuration(folder: Path) -> Section:
    environment, overrides = read_json(folder / "environment.json"), folder / "overrides.yaml"
    gpus = read_json(folder / "debug" / "profile" / "facts.json").get("gpus", [])
    facts = {
        "machine": f"{environment.get('machine', '')}, {environment.get('cpus', '?')} processors",
        **({"GPUs": ", ".join(gpus)} if gpus else {}),
        "python": environment.get("python", ""),
        **environment.get("versions", {}),
        "git": " ".join(f"{name}: {value}" for name, value in environment.get("git", {}).items()) or "no repository",
    }
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    seed = [line.partition(":")[2].strip() for line in config.splitlines() if line.startswith("seed:")]
    rows = [["seed", *seed[:1]]] if seed else []
    rows += [[name, str(value)] for name, value in facts.items()] if environment else []
    said = overrides.read_text(encoding="utf-8").strip() if overrides.is_file() else ""
    return {
        "pre": [("Words of the command", said if said != "[]" else ""), ("All options", config)],
        "table": {"head": ["what", "value"], "numeric": [], "rows": rows},
    }


def _log(folder: Path) -> Section | None:
    """The end of the log of a run that did not finish."""
    file = folder / "log.txt"
    if read_status(folder).get("state") not in ("failed", "interrupted") or not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return {"pre": [(f"The last {len(lines)} lines", "\n".join(lines))]}


def _most_confused(counts: np.ndarray, names: list[str]) -> list[list[str]]:
    errors = counts * (1 - np.eye(len(names), dtype=int))
    order = np.argsort(-errors, axis=None, kind="stable")[:MOST_ROWS]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [[names[a], names[b], str(errors[a, b])] for a, b in pairs if errors[a, b]]


SECTIONS: Mapping[str, tuple[str, Callable[[Path], Section | None]]] = {
    "curves": ("Learning curves", _curves),
    "confusion": ("Confusion", _confusion),
    "classes": ("Classes", _classes),
    "calibration": ("Calibration", _calibration),
    "wrong": ("Most wrong", _wrong),
    "samples": ("Samples", _samples),
    "gradcam": ("Where the model looked", _gradcam),
    "data": ("Data", _data),
    "rules": ("Rules", _rules),
    "profile": ("Profile", _profile),
    "log": ("Log", _log),
    "configuration": ("Configuration", _configuration),
}
