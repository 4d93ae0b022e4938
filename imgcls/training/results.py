"""Writes the results of a training to the run folder: metrics, predictions, the portable model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from imgcls import portable
from imgcls.data.checks import bad_as_csv
from imgcls.data.module import ImageDataModule
from imgcls.data.samples import sample_evaluation_pixels, sample_validation_pictures
from imgcls.data.sources import Split
from imgcls.data.stores.features import FeatureStore
from imgcls.models.classifier import Classifier
from imgcls.models.metrics import Outputs
from imgcls.models.network import Network
from imgcls.models.ranking import areas, in_parts, softmax_columns
from imgcls.portable.calibration import Calibration, calibrate
from imgcls.portable.conformal import ClassSets, fit_sets
from imgcls.portable.examples import COUNT
from imgcls.portable.model import softmax
from imgcls.portable.novelty import Novelty
from imgcls.report.intervals import as_metrics, calibration_interval
from imgcls.report.report_data import PARTS, gather
from imgcls.runs.about import read_about
from imgcls.runs.confusion import Confusion
from imgcls.runs.reading import read_origin
from imgcls.system.files import atomic_path, atomic_write_text
from imgcls.system.tables import as_csv
from imgcls.training.devices import choose_devices
from imgcls.training.label_results import write_label_predictions
from imgcls.training.metric_intervals import metric_intervals
from imgcls.training.unknown import fit_known

log = logging.getLogger(__name__)

MAX_SORTED = 50_000_000  # logits, whose order takes seconds
LOGITS_AT_A_TIME = 4_000_000  # whose probabilities and texts take more memory than they themselves


def write(
    folder: Path,
    cfg: DictConfig,
    datamodule: ImageDataModule,
    classifier: Classifier,
    metrics: dict[str, float],
    validation: Outputs | None,
    features: Mapping[str, FeatureStore] | None = None,
) -> None:
    """Write everything that a finished run holds besides its checkpoints; `metrics.json` comes last.

    Adds the 95 % intervals to `metrics`, as `test/accuracy_low` and so on.

    `validation` are the outputs for the validation images, which calibrate the exported model; None: it stays as it is.
    `features` are those that the training has stored, of images as evaluation sees them.
    """
    tested = classifier.test_outputs if cfg.test and datamodule.source.test is not None else None
    for split, outputs in (("val", validation), ("test", tested)):
        if outputs is not None:
            groups = datamodule.source.splits()[split].groups
            metrics |= as_metrics(metric_intervals(classifier, outputs, groups), split)
    calibration = sets = None
    if validation is not None:
        groups = datamodule.source.test.groups if datamodule.source.test is not None else None
        calibration, sets = fit_calibration(folder, validation, _arrays(tested) if tested is not None else None, groups)
    thresholds = classifier.thresholds.tolist() if classifier.multilabel else None
    if tested is not None and datamodule.source.test is not None and classifier.multilabel:
        write_label_predictions(folder, datamodule.source.test, classifier)
    elif tested is not None and datamodule.source.test is not None:
        write_predictions(
            folder, datamodule.source.test, classifier, calibration.temperature if calibration is not None else 1.0
        )
    write_bad_files(folder, datamodule)
    # a fold of a cross-validation shows its images in the report of all folds
    gather(folder, datamodule, classifier, PARTS if cfg.report or cfg.data.get("fold") is None else ("counts",))
    novelty = fit_known(
        cfg.export.get("known", False),
        datamodule,
        classifier.network,
        frozen=cfg.model.freeze == "backbone",
        test=cfg.test,
        features=features,
        device=choose_devices(cfg.trainer.accelerator, "auto").torch_device(),
    )
    export_model(
        folder,
        datamodule,
        classifier.network,
        metrics,
        onnx=cfg.export.onnx is not False,
        thresholds=thresholds,
        calibration=calibration,
        sets=sets,
        novelty=novelty,
        examples=cfg.export.get("examples", False),
    )
    atomic_write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def export_model(
    folder: Path,
    datamodule: ImageDataModule,
    network: Network,
    metrics: Mapping[str, Any],
    *,
    onnx: bool = True,
    thresholds: Sequence[float] | None = None,
    calibration: Calibration | None = None,
    sets: ClassSets | None = None,
    novelty: Novelty | None = None,
    examples: bool = False,
) -> dict[str, portable.Parity]:
    """Write the portable model of the run in `folder`, and return how well it agrees with `network` on real images.

    Raises UserError if it does not agree; see `portable.export`.
    """
    for found in (calibration, sets, novelty):
        if found is not None:
            log.info("%s", found)
    return portable.export(
        network,
        preprocessing=datamodule.preprocessing,
        class_names=datamodule.class_names,
        metrics={name: value for name, value in metrics.items() if name.startswith(("val/", "test/"))},
        folder=folder / "model",
        onnx=onnx,
        thresholds=thresholds,
        pixels=sample_evaluation_pixels(datamodule),
        calibration=calibration,
        origin=read_origin(folder),
        about=read_about(folder),
        examples=sample_validation_pictures(datamodule, COUNT) if examples else (),
        sets=sets,
        novelty=novelty,
    )


def write_data_notes(folder: Path, datamodule: ImageDataModule) -> None:
    """Log the notes on the data set, and list the files that are left out in `bad_files.csv`."""
    for note in datamodule.source.notes:
        log.info("%s", note)
    write_bad_files(folder, datamodule)


def write_bad_files(folder: Path, datamodule: ImageDataModule) -> None:
    """List the images that are left out in `bad_files.csv`, which may exist; those of streams are found in use."""
    bad, file = datamodule.bad_files, folder / "bad_files.csv"
    content = bad_as_csv(bad)
    if bad and not (file.is_file() and file.read_text(encoding="utf-8") == content):
        atomic_write_text(file, content)
        log.warning("%s files are left out, see %s.", f"{len(bad):,}", file)


def fit_calibration(
    folder: Path,
    validation: Outputs,
    test: tuple[np.ndarray, np.ndarray] | None,
    groups: Sequence[str] | None = None,
) -> tuple[Calibration, ClassSets | None]:
    """Calibration and sets of classes of the run in `folder`, with their effect on the (logits, labels) of `test`.

    Writes the validation logits, which the report needs too. `groups` are those of the test images, if they have any.
    """
    write_logits(folder, "val", validation)
    logits, labels = _arrays(validation)
    calibration = calibrate(logits, labels, test)
    if test is not None and len(test[1]):
        interval = calibration_interval(test[0] / calibration.temperature, test[1], groups=groups)
        calibration = replace(calibration, interval=interval)
    sets = fit_sets(softmax(logits / calibration.temperature), labels)
    if sets is not None and test is not None:
        sets = sets.measured(softmax(test[0] / calibration.temperature), test[1])
    return calibration, sets


def write_logits(folder: Path, split: str, outputs: Outputs) -> None:
    """Write `<split>_logits.npy`, float32 (N, C), and `<split>_labels.npy`, int64 (N,), of the images of `split`."""
    for name, values in zip(("logits", "labels"), _arrays(outputs), strict=True):
        with atomic_path(folder / f"{split}_{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, values)


def _arrays(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    return outputs.logits.float().numpy(), outputs.labels.numpy()


def write_predictions(folder: Path, split: Split, classifier: Classifier, temperature: float = 1.0) -> None:
    """Write `predictions.csv` (a row per test image), `test_logits.npy`, `confusion.csv` and `per_class.csv`.

    The probabilities are those of the exported model, whose logits are divided by `temperature`; losses are the
    network's own.
    """
    outputs, names = classifier.test_outputs, list(classifier.class_names)
    at_once = max(1, LOGITS_AT_A_TIME // len(names))
    with atomic_path(folder / "predictions.csv") as temporary, temporary.open("wb") as file:
        for start in range(0, max(1, len(outputs.index)), at_once):
            rows = _prediction_rows(split, names, outputs, slice(start, start + at_once), temperature)
            text = as_csv(rows)
            file.write((text if start == 0 else text.partition("\n")[2]).encode())
    write_logits(folder, "test", outputs)

    true, predicted = outputs.labels, outputs.logits.argmax(dim=1)
    Confusion.of(true.numpy(), predicted.numpy(), names).write(folder)
    write_per_class(folder, names, *_arrays(outputs))


def write_per_class(folder: Path, names: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> None:
    """Write `per_class.csv`, of (N, C) `logits` and (N,) `labels`; empty where a class has no images to measure.

    `accuracy` is the recall. The average precision is left out where the logits are too many to sort them all.
    """
    count, predicted = len(names), logits.argmax(axis=1) if len(labels) else labels
    true, answers, hits = (
        np.bincount(part, minlength=count) for part in (labels, predicted, labels[predicted == labels])
    )
    precisions = np.full(count, np.nan)
    if logits.size <= MAX_SORTED:
        for part, scores, positive in in_parts(softmax_columns(logits), labels, count):
            precisions[part] = areas(scores, positive).average_precision
    columns = {
        "accuracy": (hits, true),
        "precision": (hits, answers),
        "recall": (hits, true),
        "f1": (2 * hits, np.where(true > 0, true + answers, 0)),
        "average_precision": (np.where(np.isnan(precisions), 0, precisions), ~np.isnan(precisions)),
    }
    rows = [
        {"class": name, "pictures": int(true[place])}
        | {
            column: round(float(part[place] / whole[place]), 6) if whole[place] else ""
            for column, (part, whole) in columns.items()
        }
        for place, name in enumerate(names)
    ]
    atomic_write_text(folder / "per_class.csv", as_csv(rows))


def _prediction_rows(
    split: Split, names: list[str], outputs: Outputs, part: slice, temperature: float
) -> list[dict[str, Any]]:
    best = (outputs.logits[part].float() / temperature).softmax(dim=1).topk(min(5, len(names)), dim=1)
    own = outputs.index[part], outputs.labels[part], outputs.loss[part]
    columns = (tensor.tolist() for tensor in (*own, best.indices, best.values))
    return [_prediction_row(split.names[index], names, *values) for index, *values in zip(*columns, strict=True)]


def _prediction_row(
    file: str, names: list[str], label: int, loss: float, indices: list[int], values: list[float]
) -> dict[str, Any]:
    """The row of one image: file, label, predicted class, confidence, loss, and the five most likely classes."""
    row: dict[str, Any] = {
        "file": file,
        "label": names[label],
        "predicted": names[indices[0]],
        "correct": int(indices[0] == label),
        "confidence": round(values[0], 6),
        "loss": round(loss, 6),
    }
    for place, (index, value) in enumerate(zip(indices, values, strict=True), start=1):
        row[f"top{place}"] = names[index]
        row[f"top{place}_probability"] = round(value, 6)
    return row
