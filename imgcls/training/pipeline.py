"""From a configuration to a trained, tested and exported model: the core of imgcls, in one process.

`fit.py` calls `train`, in this process or in one per device; `build.py` makes the parts. All output goes into the run
folder.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from imgcls.callbacks.checkpoints import LAST, Checkpoints
from imgcls.callbacks.history import History
from imgcls.callbacks.timing import Timing
from imgcls.data.batched import BatchedData
from imgcls.data.feature_module import evaluation_features
from imgcls.data.module import ImageDataModule
from imgcls.data.stores.sharing import remember
from imgcls.models.adapters import merge_adapters
from imgcls.models.backbones import check_pretrained
from imgcls.models.classifier import Classifier
from imgcls.system.allocation import keep_freed_memory
from imgcls.system.interrupts import StopSignals
from imgcls.training import results
from imgcls.training.arithmetic import choose_arithmetic
from imgcls.training.auditing import try_audit
from imgcls.training.build import (
    build_callbacks,
    build_classifier,
    build_data,
    build_network,
    build_trainer,
)
from imgcls.training.checkpoint_io import read_checkpoint
from imgcls.training.data_identity import check_data, record_data
from imgcls.training.devices import Devices, devices_of_training
from imgcls.training.head_start import prepare_head, sees_images_once
from imgcls.training.label_results import set_thresholds
from imgcls.training.learning_rate import choose_learning_rate
from imgcls.training.loggers import log_figures
from imgcls.training.neighbours import try_neighbours
from imgcls.training.outputs import calibrates, outputs_for_calibration
from imgcls.training.plan import follow_plan
from imgcls.training.soup import average_weights
from imgcls.training.strategies import is_sharded
from imgcls.training.teacher import add_teacher

log = logging.getLogger(__name__)


def train(cfg: DictConfig, folder: Path, stop: StopSignals, micro_batch_size: int | None = None) -> dict[str, float]:
    """Train, choose the best epoch, test it once, write the run folder; return the final metrics.

    Resumes from `folder/checkpoints/last.ckpt` if it exists.

    Args:
        cfg: the composed configuration.
        folder: the run folder.
        stop: the signals that end the training after a step.
        micro_batch_size: images that a device processes at a time; None: its whole share of `data.batch_size`.
    """
    timing = Timing()
    _set_up_torch(cfg.seed)
    devices = devices_of_training(cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes)
    last = folder / "checkpoints" / LAST
    resume_from = last if last.is_file() else None

    if resume_from is None and cfg.model.pretrained and cfg.model.weights is None:
        check_pretrained(cfg.model.name)  # before the images are decoded
    images = build_data(cfg, devices, micro_batch_size, plain=sees_images_once(cfg))
    images.setup(None if cfg.test else "fit")  # reports unreadable test images before hours of training
    remember(images.opened, cfg.data)
    add_teacher(cfg, images, devices)
    if resume_from is not None:
        check_data(folder, images)
    network = build_network(cfg, images, pretrained=resume_from is None)
    began = time.monotonic()
    data, solved = prepare_head(cfg, images, network, devices, folder, resume_from)
    spent = time.monotonic() - began if solved else 0.0  # the features of the backbone take nearly all of it
    cfg = follow_plan(cfg, images, solved=solved)
    cfg = choose_arithmetic(cfg, network, data, devices, folder, resuming=resume_from is not None)
    timing.unit = "images" if data is images else "feature_vectors"
    rate = 0.0 if solved else choose_learning_rate(cfg, network, data, devices, folder)
    classifier = build_classifier(cfg, network, data, devices, rate)
    history, checkpoints, callbacks = build_callbacks(cfg, folder, stop, data, classifier, timing, solved=solved)
    logger = instantiate(cfg.logger) if cfg.logger.get("_target_") else False
    length = {"max_epochs": 1} if solved else {}  # which measures the head, and writes what every other run has
    trainer = build_trainer(cfg, devices, data, classifier, callbacks, logger=logger, **length)

    if trainer.is_global_zero:
        results.write_data_notes(folder, images)
        record_data(folder, images)
    _announce(cfg, images, devices, resuming=resume_from is not None)
    trainer.fit(classifier, datamodule=data, ckpt_path=resume_from, weights_only=True)

    checkpoints.stop_together(trainer)  # for a signal that came after the last step
    stop.deferred = False
    stop.raise_if_requested()
    tester = trainer
    if is_sharded(trainer.strategy):  # each process has a share of the weights; test and export need all
        classifier = build_classifier(cfg, build_network(cfg, images, pretrained=False), data, devices, 1.0)
        tester = build_trainer(cfg, devices, data, classifier, [], strategy="ddp")
    _load_best(trainer, classifier, checkpoints)
    averaged: dict[str, float] = {}
    if checkpoints.average != "none":
        plain = tester if tester is not trainer else build_trainer(cfg, devices, data, classifier, [])
        averaged = average_weights(plain, classifier, data, checkpoints)
    if images.multilabel:
        set_thresholds(classifier, data, cfg.thresholds.aim, cfg.thresholds.at_least, trainer.world_size)
    best_epoch = checkpoints.best_epoch
    validation = outputs_for_calibration(tester, classifier, data, best_epoch) if calibrates(cfg, data) else None
    metrics = {
        **_best_row(history, checkpoints, solved=solved),
        **averaged,
        **(run_test(tester, classifier, data) if cfg.test else {}),
        **timing.summary(),
        "parameters": sum(parameter.numel() for parameter in classifier.network.parameters()),
        "seconds": round(spent + sum(row["seconds"] for row in history.rows), 3),
    }
    if cfg.trainer.get("fast_dev_run"):
        log.info("trainer.fast_dev_run: training, validation and test work; nothing is exported.")
        return metrics
    if trainer.is_global_zero:
        results.write(folder, cfg, images, classifier, metrics, validation, evaluation_features(data))
        if cfg.report:
            from imgcls.report.page import try_report

            try_audit(folder, images, classifier.network, data)
            try_neighbours(folder, images, data)
            try_report(folder)
        log_figures(trainer.logger, folder)
    return metrics


def _set_up_torch(seed: int) -> None:
    keep_freed_memory()  # before there are threads that decode images
    torch.set_float32_matmul_precision("high")
    # Adam's running means of weights without a gradient end as denormal numbers, which are slow on CPUs: the epochs of
    # a diverged trial took twice as long. Threads inherit this setting when they start, so it must be set early.
    torch.set_flush_denormal(True)
    # trainer.deterministic fills every new tensor, a quarter of the time, which only helps code that reads it unwritten
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    L.seed_everything(seed, verbose=False)


def _announce(cfg: DictConfig, images: ImageDataModule, devices: Devices, *, resuming: bool) -> None:
    log.info(
        "%s %s on %s: %d classes, %s training and %s validation images, on %s%s.",
        "Resuming" if resuming else "Training",
        cfg.model.name,
        type(images).__name__,
        images.num_classes,
        f"{len(images.source.train):,}",
        f"{len(images.source.val) if images.source.val is not None else 0:,}",
        devices.accelerator,
        f" ({devices.total} processes)" if devices.total > 1 else "",
    )
    if images.accumulation > 1:
        log.info(
            "Each batch of %d images is processed in %d parts of up to %d, with accumulated gradients.",
            images.batch_size,
            images.accumulation * devices.total,
            images.micro_batch_size,
        )


def _load_best(trainer: L.Trainer, classifier: Classifier, checkpoints: Checkpoints) -> None:
    """Load the weights of the best epoch in the first process; machines of others may not see its files."""
    merge_adapters(classifier.network)
    file = checkpoints.best if checkpoints.best.is_file() else checkpoints.last
    state = read_checkpoint(file)["state_dict"] if trainer.is_global_zero and file.is_file() else None
    if trainer.world_size > 1:
        state = trainer.strategy.broadcast(state)
    if state is not None:
        classifier.load_state_dict(state)


def run_test(trainer: L.Trainer, classifier: Classifier, data: BatchedData) -> dict[str, float]:
    """The test metrics; empty if the data set has no test images."""
    if data.source.test is None:
        log.info("There are no test images: the run ends with its validation metrics.")
        return {}
    # Only the weights: the callbacks of the training must not act on the test.
    [metrics] = trainer.test(classifier, datamodule=data, verbose=False)
    return {name: float(value) for name, value in sorted(metrics.items())}


def _best_row(history: History, checkpoints: Checkpoints, *, solved: bool) -> dict[str, float]:
    """The metrics of the best epoch, and which it is, counted from 1; a solved head has none."""
    if not history.rows:
        return {}
    epoch = checkpoints.best_epoch + 1 if checkpoints.best_epoch is not None else history.rows[-1]["epoch"]
    row = next(row for row in history.rows if row["epoch"] == epoch)
    metrics = {name: float(value) for name, value in row.items() if name.startswith("val/")}
    return {"epochs": 0, **metrics} if solved else {"best_epoch": int(epoch), "epochs": len(history.rows), **metrics}
