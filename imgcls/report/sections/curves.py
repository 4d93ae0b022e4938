"""Loss, metrics and learning rate over the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgcls.report import figures
from imgcls.report.blocks import Blocks, Figure
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section
from imgcls.runs.reading import read_steps


def _make(run: RunData) -> Blocks:
    stored = read_steps(run.folder)
    steps = figures.Steps(stored["loss"], stored["rate"]) if stored else None
    if not run.history and (steps is None or len(steps.loss) < 2):
        return []
    histories = {run.folder.name: run.history}
    return [Figure.of(figures.learning_curves(histories, steps, training_objective(run.config)), name="curves")]


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
