"""What the top of a report says: the result in a sentence, and the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imgcls.report.intervals import as_metrics, intervals, is_bound
from imgcls.report.run_data import RunData
from imgcls.runs.about import data_name
from imgcls.system.text import duration

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
    "val/map": "mean average precision, validation",
    "best_epoch": "best epoch",
    "images_per_second": "images per second",
    "feature_vectors_per_second": "feature vectors per second",
    "data_wait_fraction": "time waiting for data",
}
VALIDATED = {"val/map": "mean average precision of the validation images", "val/accuracy": "validation accuracy"}
SPEED = ("images_per_second", "feature_vectors_per_second", "data_wait_fraction")
LONG_SECONDS = 60  # of training, from which its speed is worth a place at the top
SPLITS = {"train": "training", "val": "validation", "test": "test"}
PERCENT = ("map", "subset_accuracy", "accuracy", "accuracy_top5", "data_wait_fraction")


def format_metric(name: str, value: Any) -> str:
    """A metric as text: a percentage, an epoch counted from 1, or a number."""
    if name == "best_epoch":
        return str(int(value))
    return f"{value:.2%}" if name.rpartition("/")[2] in PERCENT else f"{value:.4g}"


def format_bounds(name: str, metrics: Mapping[str, Any]) -> str:
    """The 95 % interval of a metric as text; empty where there is none."""
    ends = [metrics.get(f"{name}_{end}") for end in ("low", "high")]
    return " to ".join(format_metric(name, end) for end in ends) if None not in ends else ""


def format_with_bounds(name: str, metrics: Mapping[str, Any]) -> str:
    """A metric and its 95 % interval as text."""
    bounds = format_bounds(name, metrics)
    return format_metric(name, metrics[name]) + (f" ({bounds})" if bounds else "")


def facts(run: RunData) -> list[tuple[str, str]]:
    """What was trained on what, when, for how long and where: label and value."""
    config, metrics, status = run.config, run.metrics, run.status
    model = config.get("model") or {}
    start = "pretrained weights" if model.get("pretrained") else "random weights"
    frozen = ", frozen backbone" if model.get("freeze") == "backbone" else ""
    splits = run.json("data.json").get("splits") or {}
    sizes = [f"{count:,} {SPLITS.get(name, name)}" for name, (count, *_) in splits.items()]
    name = data_name(config)
    environment, gpus = run.json("environment.json"), run.json("debug/profile/facts.json").get("gpus") or []
    device = ", ".join(gpus) if gpus else f"{environment['cpus']} CPU cores" if "cpus" in environment else ""
    found = {
        "model": f"{model['name']}, {start}{frozen}" if model.get("name") else "",
        "parameters": f"{metrics['parameters']:,}" if "parameters" in metrics else "",
        "data": f"{name}: {', '.join(sizes)} images" if sizes else name,
        "started": str(status.get("started") or "")[:16].replace("T", " "),
        "training": duration(metrics["seconds"]) if "seconds" in metrics else "",
        "machine": device,
    }
    return [(label, value) for label, value in found.items() if value]


def headline(run: RunData) -> tuple[str, Sequence[tuple[str, ...]]]:
    """The verdict in words, and the metrics: label, value and interval."""
    metrics, status, history = run.metrics, run.status, run.history
    if "test/map" in metrics:
        count, classes = len(run.predictions), len(run.classes)
        sentence = f"The mean average precision is {metrics['test/map']:.2%}, on {count:,} images of {classes} labels."
    elif "test/accuracy" in metrics:
        if "test/accuracy_low" not in metrics and (outputs := run.test_outputs):  # of an earlier version
            bounds = as_metrics(intervals(*outputs), "test")
            metrics |= {name: value for name, value in bounds.items() if name.rpartition("_")[0] in metrics}
        sentence = _verdict(run, metrics)
    elif found := [name for name in ("val/map", "val/accuracy") if name in metrics]:
        sentence = f"The {VALIDATED[found[0]]} is {metrics[found[0]]:.2%}; there was no test."
    elif found := [name for name in ("val/map", "val/accuracy") if history and name in history[-1]]:
        epochs = f"{len(history)} epoch{'s' if history[1:] else ''}"
        sentence = f"No result yet; the {VALIDATED[found[0]]} after {epochs} is {history[-1][found[0]]:.2%}."
    else:
        sentence = "The run has no result yet."
    if effect := run.calibration.get("effect", {}).get("test"):  # of the exported model
        metrics = {name: value for name, value in metrics.items() if not name.startswith("test/ece")}
        metrics["test/ece"] = effect["ece"][1]
        if run.calibration.get("interval"):
            metrics |= as_metrics({"ece": run.calibration["interval"]}, "test")
    state, stopped = status.get("state", "unknown"), run.json("debug/stopped.json")
    if state not in ("finished", "running"):
        ended = {"failed": "failed", "interrupted": "was interrupted"}.get(state, f"is {state}")
        reason = str(status.get("reason") or "").rstrip(".")
        sentence += f" The run {ended}{': ' if reason else ''}{reason}."
    if stopped:
        sentence += f" The rule {stopped['rule']} ended the training: {stopped['sentence']}"
    if metrics.get("finetuned_share", 1) < 1:
        metrics = {name: value for name, value in metrics.items() if name != "best_epoch"}
    numbers = [
        (label, format_metric(name, metrics[name]), format_bounds(name, metrics))
        for name, label in METRICS.items()
        if name in metrics and (name not in SPEED or metrics.get("training_seconds", 0) >= LONG_SECONDS)
    ]
    own = [name for name in metrics if name.startswith("test/") and name not in METRICS and not is_bound(name, metrics)]
    numbers += [(name, format_metric(name, metrics[name]), format_bounds(name, metrics)) for name in own]
    return sentence, numbers


def _verdict(run: RunData, metrics: Mapping[str, Any]) -> str:
    """The test accuracy, how sure it is, and what answering always with the largest class would reach."""
    count, classes = len(run.predictions), len(run.classes)
    accuracy, ends = metrics["test/accuracy"], format_bounds("test/accuracy", metrics)
    sentence = f"The test accuracy is {accuracy:.2%}"
    if folds := [spread for spread in run.folds if spread.name == "test/accuracy"]:
        sentence = f"The accuracy of {len(folds[0].values)} folds is {folds[0].text}"
    sentence += f" (95 % interval {ends})" if ends else ""
    sentence += f", on {count:,} images of {classes} classes."
    sizes = {row["class"]: int(row["pictures"]) for row in run.table("per_class.csv")}
    largest = max(sizes, key=sizes.__getitem__, default="")
    if not largest or not sum(sizes.values()):
        return sentence
    share = sizes[largest] / sum(sizes.values())
    sentence += f" Always answering {largest}, the largest class, would be right for {share:.1%} of them"
    if metrics.get("test/accuracy_low", accuracy) > share:
        return f"{sentence}."
    return f"{sentence}: the model is not clearly better than that."
