"""The thresholds and the results of `task=multilabel`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import multilabel_average_precision

from imgcls.data.batched import BatchedData
from imgcls.data.sources import Split
from imgcls.models.classifier import Classifier
from imgcls.models.multilabel import choose_thresholds
from imgcls.system.files import atomic_path, atomic_write_text
from imgcls.system.tables import as_csv, join_labels

log = logging.getLogger(__name__)


@torch.inference_mode()
def set_thresholds(
    classifier: Classifier, data: BatchedData, aim: str = "f1", at_least: float = 0.9, world_size: int = 1
) -> None:
    """Choose the thresholds of `classifier` on the validation images; 0.5 without any, or with several processes."""
    if data.source.val is None:
        log.warning("There are no validation images: the threshold of each label is 0.5.")
        return
    if world_size > 1:
        log.warning("With several processes the threshold of each label is 0.5: imgcls export run=DIR chooses them.")
        return
    training = classifier.training
    classifier.eval()
    batches = data.evaluation_dataloader("val")
    parts = [torch.sigmoid(classifier(batch[0].to(classifier.device)).float()).cpu() for batch in batches]
    classifier.train(training)
    probabilities = torch.cat(parts).numpy()
    chosen = choose_thresholds(probabilities, data.source.val.labels, aim, at_least)
    classifier.thresholds.copy_(torch.from_numpy(chosen))
    count = f"{len(probabilities):,}"
    log.info("The thresholds of the labels are chosen on %s validation images: model/model.json.", count)


def write_label_predictions(folder: Path, split: Split, classifier: Classifier) -> None:
    """Write `predictions.csv` (a row per test image), `test_logits.npy`, `test_labels.npy`, `per_class.csv` and
    `label_errors.csv`."""
    outputs, names = classifier.test_outputs, list(classifier.class_names)
    probabilities = torch.sigmoid(outputs.logits.float())
    thresholds = classifier.thresholds.cpu()
    answers, labels = (probabilities >= thresholds).numpy(), outputs.labels.numpy().astype(bool)
    best = probabilities.topk(min(5, len(names)), dim=1)
    rows = []
    for place, index in enumerate(outputs.index.tolist()):
        right = bool((answers[place] == labels[place]).all())
        row: dict[str, Any] = {
            "file": split.names[index],
            "label": join_labels([names[label] for label in np.flatnonzero(labels[place])], names),
            "predicted": join_labels([names[label] for label in np.flatnonzero(answers[place])], names),
            "correct": int(right),
            "confidence": round(float(best.values[place, 0]), 6),
            "loss": round(float(outputs.loss[place]), 6),
        }
        for rank, (label, value) in enumerate(zip(best.indices[place], best.values[place], strict=True), start=1):
            row |= {f"top{rank}": names[int(label)], f"top{rank}_probability": round(float(value), 6)}
        rows.append(row)
    atomic_write_text(folder / "predictions.csv", as_csv(rows))
    for name, values in (("logits", outputs.logits.float().numpy()), ("labels", labels.astype(np.uint8))):
        with atomic_path(folder / f"test_{name}.npy") as temporary, temporary.open("wb") as binary:
            np.save(binary, values)

    precisions = multilabel_average_precision(probabilities, outputs.labels.long(), len(names), average="none")
    hits, found, true = (answers & labels).sum(0), answers.sum(0), labels.sum(0)
    per_class = [
        {
            "class": name,
            "pictures": int(true[label]),
            "average_precision": round(float(precisions[label]), 6) if true[label] else "",
            "threshold": round(float(thresholds[label]), 6),
            "precision": round(float(hits[label] / found[label]), 6) if found[label] else "",
            "recall": round(float(hits[label] / true[label]), 6) if true[label] else "",
        }
        for label, name in enumerate(names)
    ]
    atomic_write_text(folder / "per_class.csv", as_csv(per_class))
    # for each true label that was missed, the labels that were given instead
    mistaken = (labels & ~answers).astype(np.int64).T @ (answers & ~labels).astype(np.int64)
    pairs = sorted(zip(*np.nonzero(mistaken), strict=True), key=lambda pair: -mistaken[pair])
    errors = [{"missed": names[a], "instead": names[b], "pictures": int(mistaken[a, b])} for a, b in pairs]
    atomic_write_text(folder / "label_errors.csv", as_csv(errors, ("missed", "instead", "pictures")))
