"""ROC and precision-recall curves of each class, of up to 20 classes."""

from __future__ import annotations

from imgcls.models.ranking import Curve, curve, softmax_columns
from imgcls.report import figures
from imgcls.report.blocks import Blocks, Figure, Table, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section

MAX_CLASSES = 20


def _make(run: RunData) -> Blocks:
    outputs = run.test_outputs
    if run.multilabel or outputs is None or not 2 <= len(run.classes) <= MAX_CLASSES or not len(outputs[1]):
        return []
    logits, labels = outputs
    scores = softmax_columns(logits)(slice(None))
    curves: dict[str, Curve] = {
        name: curve(scores[:, place], labels == place)
        for place, name in enumerate(run.classes)
        if 0 < (labels == place).sum() < len(labels)
    }
    if not curves:
        return []
    rows = [[name, f"{found.auroc:.4f}", f"{found.average_precision:.4f}"] for name, found in curves.items()]
    means = [
        sum(getattr(found, part) for found in curves.values()) / len(curves) for part in ("auroc", "average_precision")
    ]
    text = (
        "Each class against all others, with its probability as the threshold moves. AUROC: how often an image of the "
        "class has a higher probability of it than an image of another one."
    )
    table = Table(
        ["class", "AUROC", "average precision"],
        rows,
        [1, 2],
        ["mean of the classes", *(f"{mean:.4f}" for mean in means)],
        file="areas",
    )
    return [Text(text, soft=True), Figure.of(figures.class_curves(curves), name="class_curves"), table]


SECTION = Section("ROC and precision-recall", _make)
