"""How many classes an image can be of, by class, and which images the model does not know."""

from __future__ import annotations

import numpy as np

from imgcls.portable.conformal import TUNED_FOR, ClassSets, ranks_of
from imgcls.portable.model import softmax
from imgcls.portable.novelty import Novelty
from imgcls.report.blocks import Block, Blocks, Table, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section

MAX_OPEN_ROWS = 40  # of a table that is not folded


def _make(run: RunData) -> Blocks:
    model = run.json("model/model.json")
    blocks: list[Block] = []
    if model.get("sets") and run.test_outputs is not None and len(run.test_outputs[1]):
        sets = ClassSets.from_dict(model["sets"])
        probabilities = softmax(run.test_outputs[0] / run.calibration.get("temperature", 1.0))
        blocks += [Text(str(sets)), _table(sets, probabilities, run.test_outputs[1], run.classes)]
    if model.get("novelty"):
        blocks.append(Text(str(Novelty.from_dict(model["novelty"], np.empty((0, 0))))))
    return blocks


def _table(sets: ClassSets, probabilities: np.ndarray, labels: np.ndarray, names: list[str]) -> Table:
    """A row per class with test images, that with the largest sets first."""
    sizes = sets.sizes(probabilities, TUNED_FOR)
    held = ranks_of(probabilities, labels) <= sizes
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : int(sizes.max())]
    inside = np.arange(order.shape[1]) < sizes[:, None]
    rows = []
    for label in np.unique(labels).tolist():
        own = labels == label
        others = np.bincount(order[own][inside[own]], minlength=len(names))
        others[label] = 0
        beside = f"{names[int(others.argmax())]} ({others.max() / own.sum():.0%})" if others.any() else ""
        size = float(sizes[own].mean())
        rows.append((size, [names[label], int(own.sum()), f"{size:.2f}", f"{held[own].mean():.1%}", beside]))
    rows.sort(key=lambda row: -row[0])
    head = ["class", "test images", "mean size", "true class in the set", "most often beside it"]
    fold = f"All {len(rows)} classes" if len(rows) > MAX_OPEN_ROWS else ""
    return Table(head, [cells for _, cells in rows], [1, 2, 3], fold=fold)


SECTION = Section("Doubt", _make)
