"""From a run folder to its report."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from imgcls.debug.rules import NO_ISSUES
from imgcls.portable.calibration import NAMES as CALIBRATION_NAMES
from imgcls.portable.calibration import expected_error, judge
from imgcls.report import figures
from imgcls.report.intervals import as_metrics, intervals, is_bound
from imgcls.report.selection import samples, top_losses
from imgcls.runs.confusion import Confusion, read_confusion
from imgcls.runs.provenance import read_configuration
from imgcls.runs.reading import (
    Rows,
    class_names,
    read_history,
    read_json,
    read_metrics,
    read_outputs,
    read_predictions,
    read_status,
    read_steps,
    read_table,
)
from imgcls.system.files import atomic_write_bytes, atomic_write_text

log = logging.getLogger(__name__)

METRICS = {
    "test/accuracy": "test accuracy",
    "test/map": "mean average precision",
    "test/micro_f1": "micro F1",
    "test/subset_accuracy": "subset accuracy",
    "test/accuracy_top5": "top-5 accuracy",
    "test/macro_f1": "macro F1",
    "test/loss": "test loss",
    "test/ece": "calibration error",
    "val/accuracy": "validation accuracy",
    "train/accuracy": "training accuracy",
    "best_epoch": "best epoch",
    "images_per_second": "images per second",
    "feature_vectors_per_second": "feature vectors per second",
    "data_wait_fraction": "time waiting for data",
}
SPEED = ("images_per_second", "feature_vectors_per_second", "data_wait_fraction")
LONG_SECONDS = 60  # of training, from which its speed is worth a place at the top
PERCENT = ("map", "subset_accuracy", "accuracy", "accuracy_top5", "data_wait_fraction")
SPLITS = {"val": "validation", "test": "test"}
MAX_ROWS = 20  # of the tables of errors, files and duplicates
MAX_DRAWN_CLASSES = 500  # of a confusion matrix that is drawn whole
WORST_CLASSES = 200  # that are drawn of a larger one
LOG_LINES = 40  # of a run that did not finish
SPREAD = ("max", "p99", "p95", "p50", "min")
PARTS = ("text", "svgs", "wide", "matrix", "outcomes", "silent", "pictures", "table", "fold", "more", "strip", "pre")
Section = dict[str, Any]


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` of the run in `folder`; return the page's path.

    A section that fails becomes a warning and a sentence on the page.
    """
    sections = {title: _make_section(folder, name, make) for name, (title, make) in SECTIONS.items()}
    present = {title: section for title, section in sections.items() if section is not None}
    return write_page(folder / "report.html", folder.resolve().name, present, **_headline(folder))


def try_report(folder: Path) -> None:
    """Write the report at the end of a training, which must not fail because of it."""
    try:
        write_report(folder)
    except Exception:
        log.warning(
            "The report could not be written. To try again: python -m imgcls.report run=%s", folder, exc_info=True
        )


def write_page(
    output: Path, title: str, sections: Mapping[str, Section], *, sentence: str, numbers: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write a page of `sections`, each by its title; return its path."""
    complete = [
        {**dict.fromkeys(PARTS), "id": name.lower().replace(" ", "-"), "title": name, **section}
        for name, section in sections.items()
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    atomic_write_text(output, template.render(title=title, sections=complete, sentence=sentence, numbers=numbers))
    return output


def draw_charts(section: Section) -> Section:
    """`section` with its `charts` drawn as `svgs`."""
    charts = section.get("charts", {})
    return {**section, "svgs": [svg for chart in charts.values() for svg in chart.as_svgs()]}


def format_metric(name: str, value: Any) -> str:
    """A metric as text: a percentage, an epoch counted from 1, or a number."""
    if name == "best_epoch":
        return str(int(value) + 1)
    return f"{value:.2%}" if name.rpartition("/")[2] in PERCENT else f"{value:.4g}"


def format_bounds(name: str, metrics: Mapping[str, Any]) -> str:
    """The 95 % interval of a metric as text; empty where there is none."""
    ends = [metrics.get(f"{name}_{end}") for end in ("low", "high")]
    return " to ".join(format_metric(name, end) for end in ends) if None not in ends else ""


def format_with_bounds(name: str, metrics: Mapping[str, Any]) -> str:
    """A metric and its 95 % interval as text."""
    bounds = format_bounds(name, metrics)
    return format_metric(name, metrics[name]) + (f" ({bounds})" if bounds else "")


def _make_section(folder: Path, name: str, make: Callable[[Path], Section | None]) -> Section | None:
    try:
        section = make(folder)
        for title, chart in section.get("charts", {}).items() if section else ():
            atomic_write_bytes(folder / "figures" / f"{title}.png", chart.as_png())
        return draw_charts(section) if section else None
    except Exception as error:  # a finished training must not fail on its report
        log.warning("Report: the section %r of %s failed. %s: %s", name, folder, type(error).__name__, error)
        return {"text": f"This section could not be created: {type(error).__name__}: {error}."}


def _headline(folder: Path) -> dict[str, Any]:
    metrics, status, history = read_metrics(folder), read_status(folder), read_history(folder)
    if "test/map" in metrics:
        count, classes = len(read_predictions(folder)), len(class_names(folder))
        sentence = f"The mean average precision is {metrics['test/map']:.2%}, on {count} images of {classes} labels."
    elif "test/accuracy" in metrics:
        if "test/accuracy_low" not in metrics and (outputs := read_outputs(folder, "test")):  # of an earlier version
            bounds = as_metrics(intervals(*outputs), "test")
            metrics |= {name: value for name, value in bounds.items() if name.rpartition("_")[0] in metrics}
        count, classes = len(read_predictions(folder)), len(class_names(folder))
        sentence = f"The test accuracy is {metrics['test/accuracy']:.2%}"
        ends = format_bounds("test/accuracy", metrics)
        sentence += f" (95 % interval {ends})" if ends else ""
        sentence += f", on {count} images of {classes} classes."
    elif "val/accuracy" in metrics:
        sentence = f"The validation accuracy is {metrics['val/accuracy']:.2%}; there was no test."
    elif history and "val/accuracy" in history[-1]:
        epochs = f"{len(history)} epoch{'s' if history[1:] else ''}"
        sentence = f"No result yet; the validation accuracy after {epochs} is {history[-1]['val/accuracy']:.2%}."
    else:
        sentence = "The run has no result yet."
    if effect := _read_calibration(folder).get("effect", {}).get("test"):  # of the exported model
        metrics = {name: value for name, value in metrics.items() if not name.startswith("test/ece")}
        metrics["test/ece"] = effect["ece"][1]
    state, stopped = status.get("state", "unknown"), read_json(folder / "debug" / "stopped.json")
    if state not in ("finished", "running"):
        ended = {"failed": "failed", "interrupted": "was interrupted"}.get(state, f"is {state}")
        reason = str(status.get("reason") or "").rstrip(".")
        sentence += f" The run {ended}{': ' if reason else ''}{reason}."
    if stopped:
        sentence += f" The rule {stopped['rule']} ended the training: {stopped['sentence']}"
    numbers = [
        (label, format_with_bounds(name, metrics))
        for name, label in METRICS.items()
        if name in metrics and (name not in SPEED or metrics.get("training_seconds", 0) >= LONG_SECONDS)
    ]
    own = [name for name in metrics if name.startswith("test/") and name not in METRICS and not is_bound(name, metrics)]
    numbers += [(name, format_metric(name, metrics[name])) for name in own]
    return {"sentence": sentence, "numbers": numbers}


def _curves(folder: Path) -> Section | None:
    history, stored = read_history(folder), read_steps(folder)
    steps = figures.Steps(stored["loss"], stored["rate"]) if stored else None
    if not history and (steps is None or len(steps.loss) < 2):
        return None
    chart = figures.learning_curves({folder.name: history}, steps, training_objective(read_configuration(folder)))
    return {"charts": {"curves": chart}}


def training_objective(config: Mapping[str, Any]) -> str:
    """How the training loss of a configuration differs from the plain cross entropy that validation measures."""
    loss, augment = config.get("loss") or {}, (config.get("data") or {}).get("augment") or {}
    mixing = augment.get("mixing") or {}
    smoothing = loss.get("label_smoothing")
    parts = [str(loss["_target_"]).rpartition(".")[2]] if loss.get("_target_") else []
    parts += [f"label smoothing {smoothing:g}"] if smoothing else []
    parts += ["class weights"] if loss.get("class_weights") else []
    parts += ["focal"] if loss.get("focal_gamma") else []
    parts += ["mixed images"] if mixing.get("mixup") or mixing.get("cutmix") else []
    return ", ".join(parts)


def _learning_rate(folder: Path) -> Section | None:
    """What `optim.lr=auto` found."""
    found = read_json(folder / "learning_rate.json")
    if not {"lr", "loss", "suggestion"} <= found.keys():
        return None
    chosen = found["suggestion"]
    chart = figures.learning_rate_finder(np.array(found["lr"]), np.array(found["loss"]), chosen)
    return {
        "charts": {"learning_rate": chart},
        "text": f"optim.lr=auto chose {chosen:.2g} from the mean, smoothed loss of short trainings with growing rates.",
    }


def _confusion(folder: Path) -> Section | None:
    names = class_names(folder)
    if not names:
        return None
    if (folder / "label_errors.csv").is_file():
        return _mistaken_labels(folder)
    confusion = read_confusion(folder, names)
    pairs = _most_confused(confusion)
    section: Section = {
        "table": {"head": ["true", "predicted", "images"], "numeric": [2], "rows": pairs},
        "text": "" if pairs else "Every test image was classified correctly.",
    }
    if len(names) <= figures.MAX_CLASSES:
        section["charts"] = {"confusion": figures.confusion_matrix(confusion.dense(), names)}
        section["wide"] = 6 + 1.5 * len(names)
        return section
    if len(names) > MAX_DRAWN_CLASSES:
        wrong, count = confusion.errors(), len(names)
        errors = sum(np.bincount(part, wrong.images, count) for part in (wrong.true, wrong.predicted))
        worst = np.sort(np.argsort(-errors, kind="stable")[:WORST_CLASSES])
        counts, names = confusion.dense(worst), [names[index] for index in worst]
        section["text"] = f"The matrix shows the {WORST_CLASSES} classes with the most errors."
    else:
        counts = confusion.dense()
    image = figures.confusion_pixels(counts)
    atomic_write_bytes(folder / "figures" / "confusion.png", image)
    cells = {f"{row},{column}": int(counts[row, column]) for row, column in zip(*np.nonzero(counts), strict=True)}
    section["matrix"] = {"image": base64.b64encode(image).decode(), "names": names, "cells": cells}
    return section


def _mistaken_labels(folder: Path) -> Section:
    cells = [list(row.values()) for row in read_table(folder / "label_errors.csv")[:MAX_ROWS]]
    text = "Labels that images lack, and those that they were given instead." if cells else "No label was mistaken."
    return {"text": text, "table": {"head": ["missed", "given instead", "images"], "numeric": [2], "rows": cells}}


def _most_confused(confusion: Confusion) -> list[list[str]]:
    wrong, names = confusion.errors(), confusion.names
    order = np.argsort(-wrong.images, kind="stable")[:MAX_ROWS]
    return [[names[wrong.true[at]], names[wrong.predicted[at]], str(wrong.images[at])] for at in order]


def _classes(folder: Path) -> Section | None:
    if "average_precision" in next(iter(read_table(folder / "per_class.csv")), {}):
        return _labels(folder)
    rows = sorted(read_table(folder / "per_class.csv"), key=lambda row: float(row["accuracy"] or 2))
    cells = [
        [row["class"], row["pictures"], f"{float(row['accuracy']):.2%}" if row["accuracy"] else ""] for row in rows
    ]
    table = {"head": ["class", "test images", "accuracy"], "numeric": [1, 2], "rows": cells}
    return {"table": table, "fold": len(rows) > 40} if rows else None


def _labels(folder: Path) -> Section:
    """Each label's average precision, and its precision and recall at its threshold; the worst first."""
    rows = sorted(read_table(folder / "per_class.csv"), key=lambda row: float(row["average_precision"] or 2))
    names = ("average_precision", "precision", "recall")
    cells = []
    for row in rows:
        shares = [f"{float(row[name]):.2%}" if row[name] else "" for name in names]
        cells.append([row["class"], row["pictures"], *shares, f"{float(row['threshold']):.3f}"])
    head = ["label", "test images", "average precision", "precision", "recall", "threshold"]
    return {"table": {"head": head, "numeric": [1, 2, 3, 4, 5], "rows": cells}, "fold": len(rows) > 40}


def _read_calibration(folder: Path) -> dict[str, Any]:
    """`calibration` of `model.json`; empty where the model was exported without."""
    calibration: dict[str, Any] = read_json(folder / "model" / "model.json").get("calibration") or {}
    return calibration


def _calibration(folder: Path) -> Section | None:
    """The confidence of the exported model on the test images, and what its temperature has changed."""
    if (folder / "label_errors.csv").is_file():
        return None
    outputs = read_outputs(folder, "test")
    if outputs is None or not len(outputs[1]):
        predictions = read_predictions(folder)
        columns = (np.array([float(row[name]) for row in predictions]) for name in ("confidence", "correct"))
        return {"charts": {"calibration": figures.reliability(*columns)}} if predictions else None
    stored = _read_calibration(folder)
    temperature = stored.get("temperature", 1.0)
    logits, labels = outputs
    judged = judge(logits, labels, temperature)
    confidence, correct = judged.confidence, judged.correct.astype(float)
    section: Section = {"charts": {"calibration": figures.reliability(confidence, correct)}}
    error = (
        f"The expected calibration error is {expected_error(confidence, correct):.4f}, on {len(labels)} test images."
    )
    if not stored:
        section["text"] = (
            f"{error} The model was exported without a temperature: python -m imgcls.export run=DIR fits one on the "
            "validation images."
        )
        return section
    section["text"] = (
        f"{error} The exported model divides its logits by {temperature:.3g}, which was fitted on {stored['images']} "
        f"validation images: the network alone is {'over' if temperature > 1 else 'under'}confident."
        if temperature != 1
        else f"{error} No temperature would improve the confidence on {stored['images']} validation images."
    )
    rows = [
        [SPLITS[split], CALIBRATION_NAMES[name], f"{before:.4f}", f"{after:.4f}"]
        for split, values in stored["effect"].items()
        for name, (before, after) in values.items()
    ]
    head = ["images", "metric", "network alone", "exported model"]
    section["table"] = {"head": head, "numeric": [2, 3], "rows": rows if temperature != 1 else []}
    return section


def _thumbnails(folder: Path, select: Callable[[Rows], Rows]) -> Section | None:
    images = read_json(folder / "report_data" / "pictures.json")
    pictures = [
        {
            "image": images.get(row["file"], ""),
            "file": row["file"],
            "label": row["label"],
            "predicted": row["predicted"],
            "note": f"confidence {float(row['confidence']):.0%}",
        }
        for row in select(read_predictions(folder))
    ]
    return {"pictures": pictures} if pictures else None


def _gradcam(folder: Path) -> Section | None:
    stored = read_json(folder / "report_data" / "gradcam.json")
    if not stored.get("pictures"):
        return {"text": stored["reason"]} if stored.get("reason") else None
    pictures = [
        {"image": row["image"], "file": file, "label": row["shown"], "predicted": row["seen"], "note": ""}
        for file, row in stored["pictures"].items()
    ]
    return {"text": "Bright regions contributed most to the predicted class.", "pictures": pictures}


def _data(folder: Path) -> Section | None:
    stored, bad_files = read_json(folder / "report_data" / "counts.json"), read_table(folder / "bad_files.csv")
    duplicates = read_json(folder / "report_data" / "duplicates.json")
    section: Section = {"text": " ".join([*stored.get("notes", []), duplicates.get("note", "")]).strip()}
    splits = stored.get("splits")
    if splits:
        rows = [
            [name, *(str(counts[index]) for counts in splits.values())] for index, name in enumerate(stored["classes"])
        ]
        total = ["all", *(str(sum(counts)) for counts in splits.values())]
        numeric = list(range(1, len(total)))
        section["table"] = {"head": ["images of", *splits], "numeric": numeric, "rows": rows, "total": total}
        section["fold"] = len(rows) > 15
    section["more"] = []
    if bad_files:
        title = f"{len(bad_files)} files were left out" if bad_files[1:] else "One file was left out"
        section["more"].append(_first_rows(title, bad_files, "bad_files.csv"))
    if duplicates.get("rows"):
        count = duplicates["found"]
        title = f"{count} images are in two splits" if count > 1 else "One image is in two splits"
        section["more"].append(_first_rows(title, duplicates["rows"], "report_data/duplicates.json", count))
    section["strip"] = read_json(folder / "report_data" / "augmented.json").get("pictures", [])
    return section if splits or bad_files or section["strip"] else None


def _first_rows(title: str, rows: Sequence[Mapping[str, str]], file: str, count: int | None = None) -> Section:
    """A table of the first of `rows`, whose keys are the column heads."""
    left = (count or len(rows)) - MAX_ROWS
    note = f"… and {left} more in {file}" if left > 0 else ""
    cells = [[str(cell) for cell in row.values()] for row in rows[:MAX_ROWS]]
    return {"title": title, "head": list(rows[0]), "rows": cells, "note": note}


def outcome_section(outcomes: Sequence[Mapping[str, Any]]) -> Section:
    """The findings of rules, from outcomes as in `rules.json`; empty without any."""
    if not outcomes:
        return {}
    fired = [outcome for outcome in outcomes if outcome["status"] != NO_ISSUES]
    silent = ", ".join(outcome["rule"] for outcome in outcomes if outcome["status"] == NO_ISSUES)
    return {"text": f"{len(fired) or 'None'} of {len(outcomes)} rules fired.", "outcomes": fired, "silent": silent}


def profile_section(profile: Mapping[str, Any]) -> Section:
    """Where the time went, from the content of `profile.json`; empty without any."""
    if not profile:
        return {}
    section = outcome_section(profile.get("rules", []))
    section["charts"] = {"profile": figures.profile_shares(profile)}
    rows = [[f"{row['name']}, {row['unit']}", *(f"{row[name]:.4g}" for name in SPREAD)] for row in profile["system"]]
    section["table"] = {"head": ["resource", *SPREAD], "numeric": [1, 2, 3, 4, 5], "rows": rows}
    return section


def _configuration(folder: Path) -> Section:
    environment, file = read_json(folder / "environment.json"), folder / "overrides.yaml"
    gpus = read_json(folder / "debug" / "profile" / "facts.json").get("gpus", [])
    facts = {
        "machine": f"{environment.get('machine', '')}, {environment.get('cpus', '?')} CPUs",
        **({"GPUs": ", ".join(gpus)} if gpus else {}),
        "python": environment.get("python", ""),
        **environment.get("versions", {}),
        "git": " ".join(f"{name}: {value}" for name, value in environment.get("git", {}).items()) or "no repository",
    }
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    seed = [line.partition(":")[2].strip() for line in config.splitlines() if line.startswith("seed:")]
    rows = [["seed", *seed[:1]]] if seed else []
    rows += [[name, str(value)] for name, value in facts.items()] if environment else []
    overrides = file.read_text(encoding="utf-8").strip() if file.is_file() else "[]"
    return {
        "pre": [("Overrides", overrides if overrides != "[]" else ""), ("All options", config)],
        "table": {"head": ["what", "value"], "numeric": [], "rows": rows},
    }


def _log(folder: Path) -> Section | None:
    """The end of the log of a run that did not finish."""
    file = folder / "log.txt"
    if read_status(folder).get("state") not in ("failed", "interrupted") or not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return {"pre": [(f"The last {len(lines)} lines", "\n".join(lines))]}


SECTIONS: Mapping[str, tuple[str, Callable[[Path], Section | None]]] = {
    "curves": ("Learning curves", _curves),
    "learning_rate": ("Learning-rate finder", _learning_rate),
    "confusion": ("Confusion matrix", _confusion),
    "classes": ("Classes", _classes),
    "calibration": ("Calibration", _calibration),
    "wrong": ("Top losses", lambda folder: _thumbnails(folder, top_losses)),
    "samples": ("Samples", lambda folder: _thumbnails(folder, samples)),
    "gradcam": ("Grad-CAM", _gradcam),
    "data": ("Data", _data),
    "rules": ("Rules", lambda folder: outcome_section(read_json(folder / "debug" / "rules.json"))),
    "profile": ("Profile", lambda folder: profile_section(read_json(folder / "debug" / "profile" / "profile.json"))),
    "log": ("Log", _log),
    "configuration": ("Configuration", _configuration),
}
