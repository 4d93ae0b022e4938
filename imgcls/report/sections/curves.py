"""Loss, metrics and learning rate over the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgcls.report import figures
from imgcls.report.blocks import Blocks, Figure, Text
from imgcls.report.intervals import wilson
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section
from imgcls.runs.reading import read_steps


def _make(run: RunData) -> Blocks:
    stored = read_steps(run.folder)
    steps = figures.Steps(stored["loss"], stored["rate"]) if stored and len(stored["loss"]) > 1 else None
    if not run.history and steps is None:
        return []
    if len(run.history) == 1 and steps is None:
        solved = "The head was solved, without epochs" if run.metrics.get("epochs") == 0 else "There was one epoch"
        return [Text(f"{solved}: there is no curve to draw.")]
    histories = {run.folder.name: run.history}
    chart = Figure.of(figures.learning_curves(histories, steps, training_objective(run.config)), name="curves")
    choice = _choice(run)
    return [chart, Text(choice)] if choice else [chart]


def _choice(run: RunData) -> str:
    """How sure the choice of the best epoch by its validation accuracy is."""
    images = (run.json("data.json").get("splits", {}).get("val") or [0])[0]
    values = [row["val/accuracy"] for row in run.history if "val/accuracy" in row]
    if not images or len(values) < 2 or (run.config.get("checkpoint") or {}).get("monitor") != "val/accuracy":
        return ""
    if "finetuned_share" in run.metrics:
        return _mixture(run.metrics["finetuned_share"], int(run.metrics["best_epoch"]))
    best = max(values)
    low, high = wilson(best * images, images)
    near = sum(value >= low for value in values)
    text = (
        f"The best epoch was chosen by its accuracy on {images} validation images, {best:.1%} (95 % interval {low:.1%} "
        f"to {high:.1%}). "
    )
    if near == 1:
        return f"{text}No other of the {len(values)} epochs is in that interval: the choice is sure."
    return f"{text}{near} of the {len(values)} epochs are in that interval: which of them is best is not sure."


def _mixture(share: float, epoch: int) -> str:
    """How the weights of a fine-tuning were chosen, of which `share` is that of `epoch`."""
    start = "with which fine-tuning began"
    if share == 1:
        return f"The model has the weights of epoch {epoch}: no mixture of them with those {start} validates better."
    if share == 0:
        return f"The model has the weights {start}: no mixture of them with those of an epoch validates better."
    return (
        f"The model's weights are {share:.0%} those of epoch {epoch} and {1 - share:.0%} those {start}: the mixture "
        "that validates best."
    )


def training_objective(config: Mapping[str, Any]) -> str:
    """How the training loss of a configuration differs from the plain cross entropy that validation measures."""
    loss, augment = config.get("loss") or {}, (config.get("data") or {}).get("augment") or {}
    mixing = augment.get("mixing") or {}
    smoothing = loss.get("label_smoothing")
    parts = [str(loss["_target_"]).rpartition(".")[2]] if loss.get("_target_") else []
    parts += [f"label smoothing {smoothing:g}"] if smoothing else []
    parts += ["class weights"] if loss.get("class_weights") else []
    parts += ["focal"] if loss.get("focal_gamma") else []
    parts += ["a teacher"] if loss.get("teacher") else []
    parts += ["mixed images"] if mixing.get("mixup") or mixing.get("cutmix") else []
    return ", ".join(parts)


SECTION = Section("Learning curves", _make)
