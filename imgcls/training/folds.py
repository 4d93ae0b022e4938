"""Cross-validation: an ordinary run for each fold in `folds/1`, `folds/2`, …, and what they say together.

`fit` calls `cross_validate` in place of a single training. A finished fold is kept and an unfinished one resumed, as
every run is.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from imgcls import portable
from imgcls.data.folds import Fold, development_images, fold_positions
from imgcls.data.module import ImageDataModule, Opened
from imgcls.data.samples import sample_evaluation_pixels
from imgcls.data.sources import Split
from imgcls.data.stores.sharing import shared_data
from imgcls.models.ensemble import ensemble_of
from imgcls.models.network import Network
from imgcls.portable.description import read_description, temperature_of
from imgcls.portable.model import sigmoid, softmax
from imgcls.report.intervals import as_metrics, intervals
from imgcls.report.report_data import gather
from imgcls.runs.about import read_about
from imgcls.runs.confusion import Confusion
from imgcls.runs.folds import FOLDS, OUT_OF_FOLD, Spread, spreads, write_summary
from imgcls.runs.run import Run
from imgcls.system.files import atomic_path, atomic_write_text
from imgcls.system.tables import as_csv
from imgcls.training.build import build_classifier, build_trainer, build_whole
from imgcls.training.devices import choose_devices

log = logging.getLogger(__name__)

ROWS_AT_A_TIME = 4096  # of the table, whose texts take more memory than the logits
TOTALS = ("seconds", "training_seconds", "epochs")  # of all folds, where other metrics are means
Fit = Callable[[DictConfig, list[str]], Run]


def cross_validate(cfg: DictConfig, overrides: Sequence[str], folder: Path, fit: Fit) -> None:
    """Train each fold with `fit`, and write the means of their metrics and the out-of-fold predictions.

    Held-out images are the test images of their fold, whose validation images are cut from the others: so the choice
    of an epoch, a penalty or a temperature never sees them. Without a test (`test=false`, as the trials of a search)
    they are its validation images. The data set's own test images are in no fold.

    Args:
        cfg: the composed configuration, with `cv.folds`.
        overrides: that it was composed from.
        folder: the run folder.
        fit: trains a configuration and returns its run.

    Raises:
        UserError: the images are too few for the folds.
    """
    devices = replace(choose_devices(cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes), indices=1)
    pruning = cfg.callbacks.get("search")
    stopped, runs, count = folder / "debug" / "stopped.json", [], int(cfg.cv.folds)
    with shared_data():
        images = build_whole(cfg, devices)
        pool = development_images(images.source)
        fold_positions(pool, images.class_names, count, images.seed)
        if cfg.cv.ensemble and cfg.data.normalization == "dataset":  # the members share their preprocessing
            cfg = cfg.copy()
            cfg.data.normalization = [list(images.mean), list(images.std)]
        log.info("Cross-validation: %d folds of %s images of %d classes.", count, f"{len(pool):,}", images.num_classes)
        for number in range(1, count + 1):
            if pruning is not None and stopped.is_file():
                return
            fold = Fold(number, count, "test" if cfg.test else "val")
            log.info("Fold %d of %d: %s", number, count, folder / FOLDS / str(number))
            runs.append(fit(_configuration(cfg, folder, fold), [*_kept(overrides), f"data.fold={fold}"]))
            so_far = {spread.name: spread.mean for spread in spreads([run.metrics for run in runs])}
            if pruning is not None and cfg.checkpoint.monitor in so_far:
                pruner: Any = instantiate(pruning)
                if pruner.is_hopeless(number, count, so_far[cfg.checkpoint.monitor], None):
                    return
        found = spreads([run.metrics for run in runs])
        metrics = _together(found)
        if cfg.test:
            metrics |= _write_predictions(folder, runs, images, pool)
        if cfg.cv.ensemble:
            metrics |= _write_ensemble(cfg, folder, runs, images, metrics)
    write_summary(folder, found)
    atomic_write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    if cfg.report:
        from imgcls.report.page import try_report

        try_report(folder)


def _configuration(cfg: DictConfig, folder: Path, fold: Fold) -> DictConfig:
    """The configuration of the run of one fold."""
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.run_dir, cfg.resume = str(folder / FOLDS / str(fold.number)), "auto"
        cfg.cv, cfg.data.fold = {"folds": None, "ensemble": False}, str(fold)
        cfg.report = cfg.export.onnx = False
        cfg.callbacks.pop("search", None)
    return cfg


def _kept(overrides: Sequence[str]) -> list[str]:
    ours = ("cv.", "run_dir=", "resume=", "report=", "export.onnx=", "callbacks.search")
    return [text for text in overrides if not text.lstrip("+~").startswith(ours)]


def _together(found: Sequence[Spread]) -> dict[str, float]:
    """The mean of each metric, the deviation of those of a split as `…_sd`, and the totals of TOTALS."""
    metrics: dict[str, float] = {}
    for spread in found:
        if spread.name in TOTALS:
            total = round(sum(spread.values), 3)
            metrics[spread.name] = int(total) if spread.name == "epochs" else total
            continue
        metrics[spread.name] = spread.mean
        if "/" in spread.name:
            metrics[f"{spread.name}_sd"] = spread.deviation
    metrics.pop("best_epoch", None)  # of which fold?
    return metrics


def _write_predictions(folder: Path, runs: Sequence[Run], images: ImageDataModule, pool: Split) -> dict[str, float]:
    """Write the predictions of all held-out images, as those of a test and as a table; return their intervals.

    The probabilities of the table are those of the fold's exported model, whose logits are divided by its temperature.
    """
    names = images.class_names
    places = {name: place for place, name in enumerate(pool.names)}
    rows, logits, temperatures = [], [], []
    for number, run in enumerate(runs, start=1):
        rows += [(number, row) for row in run.predictions]
        logits.append(np.load(run.folder / "test_logits.npy", allow_pickle=False))
        temperatures += [temperature_of(read_description(run.model_folder))] * len(run.predictions)
    order = sorted(range(len(rows)), key=lambda at: places[rows[at][1]["file"]])
    rows, scores = [rows[at] for at in order], np.concatenate(logits)[order]
    positions = [places[row["file"]] for _, row in rows]
    atomic_write_text(folder / "predictions.csv", as_csv([row for _, row in rows]))
    _save(folder / "test_logits.npy", scores)
    divisors = np.array(temperatures, dtype=np.float32)[order][:, None]
    _write_table(folder / OUT_OF_FOLD, rows, scores / divisors, names, pool, positions)
    pictures = _module_with(images, replace(images.source, test=pool.subset(positions)))
    gather(folder, pictures, None, only=("pictures",))
    gather(folder, images, None, only=("counts", "duplicates"))
    if pool.multilabel:
        return {}
    labels = pool.labels[positions]
    _save(folder / "test_labels.npy", labels)
    predicted = scores.argmax(axis=1)
    Confusion.of(labels, predicted, names).write(folder)
    counts, hits = (np.bincount(part, minlength=len(names)) for part in (labels, labels[predicted == labels]))
    per_class = [
        {"class": name, "pictures": int(count), "accuracy": round(hit / count, 6) if count else ""}
        for name, count, hit in zip(names, counts.tolist(), hits.tolist(), strict=True)
    ]
    atomic_write_text(folder / "per_class.csv", as_csv(per_class))
    groups = None if pool.groups is None else [pool.groups[position] for position in positions]
    return as_metrics(intervals(scores, labels, groups=groups), "test")


def _save(file: Path, values: np.ndarray) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as binary:
        np.save(binary, values)


def _write_table(
    file: Path,
    rows: Sequence[tuple[int, dict[str, str]]],
    logits: np.ndarray,
    names: Sequence[str],
    pool: Split,
    positions: Sequence[int],
) -> None:
    """Write the true and the predicted class and all probabilities of each image, which `data=table` can read."""
    probabilities = sigmoid(logits) if pool.multilabel else softmax(logits)
    with atomic_path(file) as temporary, temporary.open("wb") as binary:
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            part = []
            for (number, row), position, shares in zip(
                rows[start : start + ROWS_AT_A_TIME],
                positions[start : start + ROWS_AT_A_TIME],
                probabilities[start : start + ROWS_AT_A_TIME].tolist(),
                strict=True,
            ):
                cells: dict[str, Any] = {name: row[name] for name in ("file", "label", "predicted", "correct")}
                cells |= {"confidence": round(max(shares), 6), "fold": number}
                if pool.groups is not None:
                    cells["group"] = pool.groups[position]
                if pool.weights is not None:
                    cells["weight"] = float(pool.weights[position])
                cells |= {f"p({name})": round(share, 6) for name, share in zip(names, shares, strict=True)}
                part.append(cells)
            text = as_csv(part)
            binary.write((text if start == 0 else text.partition("\n")[2]).encode())


def _module_with(images: ImageDataModule, source: Any) -> ImageDataModule:
    """A data module like `images` with another source."""
    module = copy.copy(images)
    module.opened = Opened(source)
    return module


def _write_ensemble(
    cfg: DictConfig, folder: Path, runs: Sequence[Run], images: ImageDataModule, metrics: dict[str, float]
) -> dict[str, float]:
    """Write the mean of the folds' models as the portable model of the run; return its metrics on the test images."""
    members = [run.model for run in runs]
    thresholds = None
    if images.multilabel:
        thresholds = np.mean([member.thresholds or () for member in members], axis=0).tolist()
    network = ensemble_of(
        [member.network for member in members],
        [temperature_of(member.description) for member in members],
        multilabel=images.multilabel,
    )
    tested = _test(cfg, images, network, thresholds) if cfg.test and images.source.test is not None else {}
    stated = {name.replace("ensemble/", "test/"): value for name, value in tested.items()} or metrics
    log.info("The ensemble of %d models%s is exported.", len(runs), ", which share the backbone," * _shared(network))
    portable.export(
        network,
        preprocessing=members[0].preprocessing,
        class_names=images.class_names,
        metrics={name: value for name, value in stated.items() if name.startswith(("val/", "test/"))},
        folder=folder / "model",
        onnx=cfg.export.onnx is not False,
        thresholds=thresholds,
        pixels=sample_evaluation_pixels(images),
        about={**read_about(folder), "per_class": []},  # those of the run are of the folds
    )
    return tested


def _shared(network: Network) -> bool:
    return network.architecture.backbones == 1


def _test(
    cfg: DictConfig, images: ImageDataModule, network: Network, thresholds: Sequence[float] | None
) -> dict[str, float]:
    """The metrics of the ensemble on the data set's own test images, as `ensemble/accuracy` and so on."""
    devices = replace(choose_devices(cfg.trainer.accelerator, "auto"), indices=1)
    classifier = build_classifier(cfg, network, images, devices, 1.0)
    if thresholds is not None:
        classifier.thresholds.copy_(torch.tensor(thresholds))
    trainer = build_trainer(cfg, devices, images, classifier, [])
    [tested] = trainer.test(classifier, datamodule=images, verbose=False)
    found = {name.replace("test/", "ensemble/"): float(value) for name, value in sorted(tested.items())}
    if thresholds is None:
        outputs, split = classifier.test_outputs, images.source.splits()["test"]
        groups = None if split.groups is None else [split.groups[place] for place in outputs.index.tolist()]
        measured = intervals(outputs.logits.float().numpy(), outputs.labels.numpy(), groups=groups)
        found |= as_metrics(measured, "ensemble")
    return found
