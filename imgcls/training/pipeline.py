"""From a configuration to a trained, tested and exported model: the heart of imgcls, in one process.

`fitting.py` calls `train` here, or in one process for each device; everything that this module writes goes into the
run folder, in the order in which a reader would do it by hand.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from imgcls.callbacks.checkpoints import LAST, Checkpoints
from imgcls.callbacks.history import History
from imgcls.callbacks.progress_bar import ProgressBar
from imgcls.callbacks.timing import Timing
from imgcls.data.augment import Augment
from imgcls.data.module import ImageDataModule
from imgcls.data.stores.sharing import keep
from imgcls.errors import UserError
from imgcls.models.classifier import Classifier
from imgcls.models.ema import WeightAveraging
from imgcls.report import try_report
from imgcls.system.bars import say
from imgcls.system.files import atomic_write_text
from imgcls.system.interrupts import StopSignals
from imgcls.training import results
from imgcls.training.build import build_classifier, build_data, build_trainer
from imgcls.training.checkpoint_io import read_checkpoint
from imgcls.training.devices import Devices, choose_devices
from imgcls.training.frozen_backbone import use_features
from imgcls.training.loggers import log_figures
from imgcls.training.strategies import is_sharded

log = logging.getLogger(__name__)


def train(cfg: DictConfig, folder: Path, stop: StopSignals, micro_batch_size: int | None = None) -> dict[str, float]:
    """Train, choose the best epoch, test it once, write the run folder; return the final metrics.

    Goes on from `folder/checkpoints/last.ckpt` where there is one.

    Args:
        cfg: the composed configuration.
        folder: the run folder.
        stop: the signals that end the training after a step.
        micro_batch_size: pictures that a device takes at a time; None: all of its share of `data.batch_size`.
    """
    timing = Timing()
    torch.set_float32_matmul_precision("high")
    # Adam's running means of weights without a gradient end as denormal numbers, with which processors are slow: the
    # epochs of a diverged trial took twice as long. Threads have this from the one that starts them, so it comes early.
    torch.set_flush_denormal(True)
    L.seed_everything(cfg.seed, verbose=False)
    devices = choose_devices(cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes)
    datamodule = build_data(cfg, devices, micro_batch_size)
    features_once = cfg.model.freeze == "backbone" and cfg.model.feature_views is not None
    if features_once and cfg.model.feature_views == 0:
        datamodule.augment = Augment()  # the plain pictures, which are then decoded once for training and evaluation
    # the test pictures too: what cannot be read is to be known before hours of training
    datamodule.setup(None if cfg.test else "fit")
    keep(datamodule, cfg.data)
    last = folder / "checkpoints" / LAST
    resuming = last.is_file()

    searching = cfg.optim.lr == "auto"
    classifier = build_classifier(cfg, datamodule, devices, 1.0 if searching else cfg.optim.lr, pretrained=not resuming)
    if features_once:
        if resuming:
            classifier.load_state_dict(read_checkpoint(last)["state_dict"])
        _use_features(cfg, datamodule, classifier, devices)
    if searching:
        classifier.optim = replace(classifier.optim, lr=_found_learning_rate(cfg, datamodule, devices, folder))

    history = History(folder / "metrics.csv", announce=None if cfg.quiet else say)
    checkpoints: Checkpoints = instantiate(cfg.checkpoint, folder=folder / "checkpoints", stop=stop)
    callbacks: list[L.Callback] = [timing, ProgressBar(), history, checkpoints]
    if cfg.debug.get("_target_"):
        counts = _counts_that_train(cfg, datamodule)
        callbacks[-1:-1] = instantiate(cfg.debug, folder=folder / "debug", class_counts=counts, _convert_="all")
    if cfg.early_stopping.get("_target_"):
        callbacks.append(instantiate(cfg.early_stopping))
    callbacks += instantiate(cfg.callbacks, _convert_="all").values()
    if cfg.optim.ema is not None:
        callbacks.insert(0, WeightAveraging(decay=cfg.optim.ema))
    if classifier.optim.lookahead is not None:
        callbacks.insert(0, classifier.optim.lookahead)
    logger = instantiate(cfg.logger) if cfg.logger.get("_target_") else False
    trainer = build_trainer(cfg, devices, datamodule, classifier, callbacks, logger=logger)

    if trainer.is_global_zero:
        results.write_data_notes(folder, datamodule)
    _say_what_will_happen(cfg, datamodule, classifier, devices, resuming)
    trainer.fit(classifier, datamodule=datamodule, ckpt_path=str(last) if resuming else None, weights_only=True)

    checkpoints.stop.deferred = False
    tester = trainer
    if is_sharded(trainer.strategy):  # what was trained is in shares now; the test and the export want it whole
        classifier = build_classifier(cfg, datamodule, devices, 1.0, pretrained=False)
        tester = build_trainer(cfg, devices, datamodule, classifier, [], strategy="ddp")
    _load_best(trainer, classifier, checkpoints)
    tested = _test(tester, classifier, datamodule) if cfg.test else {}
    metrics = {
        **_best_row(history, checkpoints),
        **tested,
        **timing.summary(),
        "parameters": sum(parameter.numel() for parameter in classifier.network.parameters()),
        "seconds": round(sum(row["seconds"] for row in history.rows), 3),
    }
    if trainer.is_global_zero:
        results.write(folder, cfg, datamodule, classifier, metrics)
        if cfg.report:
            try_report(folder)
        log_figures(trainer.logger, folder)
    return metrics


def _counts_that_train(cfg: DictConfig, datamodule: ImageDataModule) -> list[int]:
    """Training pictures of each class; equal ones where classes are drawn or weighted to count the same."""
    counts: list[int] = datamodule.class_counts().tolist()
    evened = datamodule.sampler == "balanced" or cfg.loss.class_weights == "balanced"
    return [sum(counts) // len(counts)] * len(counts) if evened else counts


def _use_features(cfg: DictConfig, datamodule: ImageDataModule, classifier: Classifier, devices: Devices) -> None:
    """Run the frozen backbone once for all epochs."""
    if cfg.model.feature_views == 0:
        log.info(
            "The backbone is frozen: the head trains on its features of the plain pictures, computed once. "
            "model.feature_views=8 adds augmentation in 8 views, null has ever new ones."
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    use_features(
        datamodule,
        classifier.network,
        views=cfg.model.feature_views,
        augmentation=OmegaConf.to_container(cfg.data.augment, resolve=True),
        device=devices.torch_device(local_rank),
        splits=tuple(split for split in datamodule.source.splits() if cfg.test or split != "test"),
    )


def _found_learning_rate(cfg: DictConfig, datamodule: ImageDataModule, devices: Devices, folder: Path) -> float:
    from imgcls.training.learning_rate import find_learning_rate

    file = folder / "learning_rate.json"
    if file.is_file():
        return float(json.loads(file.read_text())["suggestion"])
    if devices.total > 1:
        raise UserError("optim.lr=auto searches on one device. Find it with trainer.devices=1, then give optim.lr.")
    found = find_learning_rate(cfg, datamodule, devices)
    atomic_write_text(file, json.dumps(found, indent=2) + "\n")
    log.info("Learning-rate finder: optim.lr=%.3g.", found["suggestion"])
    return float(found["suggestion"])


def _say_what_will_happen(
    cfg: DictConfig, datamodule: ImageDataModule, classifier: Classifier, devices: Devices, resuming: bool
) -> None:
    log.info(
        "%s %s on %s: %d classes, %d training and %d validation pictures, on %s%s.",
        "Going on with" if resuming else "Training",
        cfg.model.name,
        type(datamodule).__name__,
        datamodule.num_classes,
        len(datamodule.source.train),
        len(datamodule.source.val) if datamodule.source.val is not None else 0,
        devices.accelerator,
        f" ({devices.total} processes)" if devices.total > 1 else "",
    )
    if datamodule.accumulation > 1:
        log.info(
            "Each batch of %d pictures is computed in %d parts of at most %d, and the gradients are accumulated.",
            datamodule.batch_size,
            datamodule.accumulation * devices.total,
            datamodule.micro_batch_size,
        )


def _load_best(trainer: L.Trainer, classifier: Classifier, checkpoints: Checkpoints) -> None:
    """The weights of the best epoch, from the first process: others may be on machines that do not see its files."""
    file = checkpoints.best if checkpoints.best.is_file() else checkpoints.last
    state = read_checkpoint(file)["state_dict"] if trainer.is_global_zero and file.is_file() else None
    if trainer.world_size > 1:
        state = trainer.strategy.broadcast(state)
    if state is not None:
        classifier.load_state_dict(state)


def _test(trainer: L.Trainer, classifier: Classifier, datamodule: ImageDataModule) -> dict[str, float]:
    """The metrics of the one look at the test pictures; empty where the data set has none."""
    if datamodule.source.test is None:
        log.info("There are no test pictures: the run ends with its validation metrics.")
        return {}
    # Only the weights: the callbacks of the training must not act on the test.
    tested = trainer.test(classifier, datamodule=datamodule, verbose=False)
    return {name: float(value) for name, value in sorted(tested[0].items())}


def _best_row(history: History, checkpoints: Checkpoints) -> dict[str, float]:
    if not history.rows:
        return {}
    epoch = checkpoints.best_epoch if checkpoints.best_epoch is not None else history.rows[-1]["epoch"]
    row = next(row for row in history.rows if row["epoch"] == epoch)
    chosen = {name: float(value) for name, value in row.items() if name.startswith(("train/", "val/"))}
    return {"best_epoch": int(epoch), "epochs": len(history.rows), **chosen}


def load_config(file: Path) -> DictConfig:
    """A configuration from a run's `config.yaml`."""
    cfg = OmegaConf.load(file)
    assert isinstance(cfg, DictConfig)
    return cfg
