"""From a run folder to its report."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.files import atomic_write_bytes, atomic_write_text
from imgcls.recording import read_status

SHOWN = {
    "test/accuracy": "test accuracy",
    "test/accuracy_top5": "top-5 accuracy",
    "test/macro_f1": "macro F1",
    "test/loss": "test loss",
    "test/ece": "calibration error",
    "val/accuracy": "validation accuracy",
    "images_per_second": "images per second",
    "data_wait_fraction": "share of time waiting for data",
}
MOST_ROWS = 20  # of the tables of errors


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` of the run in `folder`; return the page's path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    content = collect(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pictures = {}
    for name, figure in draw(content).items():
        atomic_write_bytes(folder / "figures" / f"{name}.png", figure)
        pictures[name] = "data:image/png;base64," + base64.b64encode(figure).decode()
    page = environment.get_template("report.html.j2").render(**content, figures=pictures)
    atomic_write_text(folder / "report.html", page)
    return folder / "report.html"


def collect(folder: Path) -> dict[str, Any]:
    """What the page shows, from the run's files; empty lists for what the run has not."""
    metrics = _json(folder / "metrics.json")
    config_text = (folder / "config.yaml").read_text(encoding="utf-8")
    predictions = _table(folder / "predictions.csv")
    per_class = _table(folder / "per_class.csv")
    confusion = _table(folder / "confusion.csv")
    names = [row["label"] for row in confusion]
    cells = [int(row[name]) for row in confusion for name in names]
    counts = np.array(cells, dtype=int).reshape(len(names), len(names))
    history = [{name: float(value) for name, value in row.items() if value} for row in _table(folder / "metrics.csv")]
    overrides = folder / "overrides.yaml"
    return {
        "title": folder.name,
        "sentence": _sentence(metrics, len(names), len(predictions)),
        "status": read_status(folder),
        "numbers": [(label, metrics[name]) for name, label in SHOWN.items() if name in metrics],
        "history": history,
        "names": names,
        "counts": counts,
        "predictions": predictions,
        "per_class": sorted(per_class, key=lambda row: float(row["accuracy"] or 2)),
        "confused": _most_confused(counts, names),
        "wrong": sorted((row for row in predictions if row["correct"] == "0"), key=lambda row: -float(row["loss"]))[
            :MOST_ROWS
        ],
        "overrides": overrides.read_text(encoding="utf-8") if overrides.is_file() else "",
        "config": config_text,
        "environment": _json(folder / "environment.json"),
    }


def draw(content: dict[str, Any]) -> dict[str, bytes]:
    """The figures that the run has something for, as PNG files by name."""
    from imgcls.report import figures

    drawn = {}
    if content["history"]:
        drawn["curves"] = figures.as_png(figures.learning_curves(content["history"]))
    if 0 < len(content["names"]) <= figures.MOST_CLASSES:
        drawn["confusion"] = figures.as_png(figures.confusion_matrix(content["counts"], content["names"]))
    if content["predictions"]:
        sure = np.array([float(row["confidence"]) for row in content["predictions"]])
        right = np.array([float(row["correct"]) for row in content["predictions"]])
        drawn["calibration"] = figures.as_png(figures.reliability(sure, right))
    return drawn


def _sentence(metrics: dict[str, Any], classes: int, pictures: int) -> str:
    if "test/accuracy" in metrics:
        return f"{metrics['test/accuracy']:.2%} of {pictures} test pictures of {classes} classes are recognised."
    if "val/accuracy" in metrics:
        return f"{metrics['val/accuracy']:.2%} of the validation pictures are recognised; there was no test."
    return "The run has no result yet."


def _most_confused(counts: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    if not len(names):
        return []
    errors = counts * (1 - np.eye(len(names), dtype=int))
    order = np.argsort(-errors, axis=None, kind="stable")[:MOST_ROWS]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [{"shown": names[a], "seen": names[b], "count": int(errors[a, b])} for a, b in pairs if errors[a, b]]


def _table(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
