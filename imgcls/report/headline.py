"""What the top of a report says: the result in a sentence, and the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imgcls.report.intervals import as_metrics, intervals, is_bound
from imgcls.report.run_data import RunData

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


def headline(run: RunData) -> tuple[str, Sequence[tuple[str, str]]]:
    """The sentence, and the metrics by their labels."""
    metrics, status, history = run.metrics, run.status, run.history
    if "test/map" in metrics:
        count, classes = len(run.predictions), len(run.classes)
        sentence = f"The mean average precision is {metrics['test/map']:.2%}, on {count} images of {classes} labels."
    elif "test/accuracy" in metrics:
        if "test/accuracy_low" not in metrics and (outputs := run.test_outputs):  # of an earlier version
            bounds = as_metrics(intervals(*outputs), "test")
            metrics |= {name: value for name, value in bounds.items() if name.rpartition("_")[0] in metrics}
        count, classes = len(run.predictions), len(run.classes)
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
    if effect := run.calibration.get("effect", {}).get("test"):  # of the exported model
        metrics = {name: value for name, value in metrics.items() if not name.startswith("test/ece")}
        metrics["test/ece"] = effect["ece"][1]
    state, stopped = status.get("state", "unknown"), run.json("debug/stopped.json")
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
    return sentence, numbers
