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
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf

from imgcls import results
from imgcls.background import BackgroundCheckpointIO
from imgcls.checkpoints import LAST, AtomicCheckpointIO, Checkpoints, read_checkpoint
from imgcls.data.augment import Augment
from imgcls.data.module import ImageDataModule
from imgcls.data.samples import plain_pictures
from imgcls.data.sharing import keep, reuse
from imgcls.devices import Devices, choose_devices
from imgcls.errors import UserError
from imgcls.features import use_features
from imgcls.files import atomic_write_text
from imgcls.history import History
from imgcls.interrupts import StopSignals
from imgcls.loggers import log_figures
from imgcls.models.backbones import Network, create_network
from imgcls.models.classifier import Classifier
from imgcls.models.ema import WeightAveraging
from imgcls.models.whitening import INITIAL_PICTURES, FromPictures
from imgcls.progress import ProgressBar, say
from imgcls.report import try_report
from imgcls.strategies import choose_strategy, is_sharded
from imgcls.timing import Timing

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


def build_data(cfg: DictConfig, devices: Devices, micro_batch_size: int | None = None) -> ImageDataModule:
    """The data module of `cfg`, its files in place."""
    datamodule: ImageDataModule = instantiate(cfg.data, _convert_="all")
    if micro_batch_size is not None:
        datamodule.micro_batch_size = micro_batch_size
    datamodule.world_size = devices.total
    datamodule.backbone_statistics = backbone_statistics(cfg.model.name)
    if not reuse(datamodule, cfg.data):
        datamodule.prepare_data()
    return datamodule


def backbone_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels that timm's weights of this model were trained with."""
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    fallback = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return (config.mean, config.std) if config is not None else fallback


def build_network(cfg: DictConfig, num_classes: int, *, pretrained: bool = True) -> Network:
    """The network of `cfg`, with its weights if `pretrained` (a resumed run reads them from its checkpoint)."""
    model = cfg.model
    return create_network(
        model.name,
        num_classes,
        pretrained=pretrained and model.pretrained and model.weights is None,
        weights=Path(model.weights).expanduser() if pretrained and model.weights is not None else None,
        stem=model.stem,
        head=instantiate(model.head),
        drop_rate=model.drop_rate,
        drop_path_rate=model.drop_path_rate,
        image_size=cfg.data.image_size,
        options=OmegaConf.to_container(model.options) if model.get("options") else None,  # type: ignore[arg-type]
        views=model.get("views", "one"),
    )


def build_classifier(
    cfg: DictConfig, datamodule: ImageDataModule, devices: Devices, learning_rate: float, *, pretrained: bool = True
) -> Classifier:
    """The LightningModule of `cfg` for the classes of `datamodule`."""
    model, loss = cfg.model, cfg.loss
    L.seed_everything(cfg.seed, verbose=False)  # the head's random weights do not depend on what was done before
    network = build_network(cfg, datamodule.num_classes, pretrained=pretrained)
    if pretrained and model.weights is None and isinstance(network.backbone, FromPictures):
        network.backbone.initialise_from(plain_pictures(datamodule, INITIAL_PICTURES))
    epochs = cfg.trainer.max_epochs
    steps = datamodule.steps_per_epoch * epochs
    return Classifier(
        network,
        optim=instantiate(cfg.optim, lr=learning_rate),
        class_names=datamodule.class_names,
        label_smoothing=loss.label_smoothing,
        class_weights=class_weights(loss.class_weights, datamodule),
        focal_gamma=loss.focal_gamma,
        freeze=model.freeze,
        unfreeze_epoch=model.unfreeze_epoch,
        channels_last=devices.channels_last(model.channels_last, cfg.data.image_size),
        compile=devices.compile(model.compile, steps),
        seed=cfg.seed,
    )


def class_weights(wanted: Any, datamodule: ImageDataModule) -> torch.Tensor | None:
    """The weights of the classes in the loss, shape (C,), of mean 1 over the pictures.

    'balanced' weighs each class by the inverse of its number of training pictures.
    """
    if wanted is None:
        return None
    counts = datamodule.class_counts().float()
    if wanted == "balanced":
        return counts.sum() / (len(counts) * counts.clamp(min=1))
    weights = torch.tensor([float(weight) for weight in wanted])
    if len(weights) != len(counts):
        raise UserError(f"loss.class_weights has {len(weights)} weights, but there are {len(counts)} classes.")
    return weights


def build_trainer(
    cfg: DictConfig,
    devices: Devices,
    datamodule: ImageDataModule,
    classifier: Classifier,
    callbacks: list[L.Callback],
    **options: Any,
) -> L.Trainer:
    """Lightning's Trainer from `cfg.trainer`, with what imgcls decides for it."""
    strategy = choose_strategy(
        options.pop("strategy", cfg.trainer.strategy),
        devices.total,
        find_unused_parameters=classifier.needs_find_unused_parameters,
    )
    in_background = devices.in_background(cfg.checkpoint.get("in_background", False))
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        _convert_="all",
        callbacks=callbacks,
        accelerator=devices.accelerator,
        devices=devices.indices,
        strategy=strategy,
        precision=devices.precision(cfg.trainer.precision),
        accumulate_grad_batches=datamodule.accumulation,
        plugins=[BackgroundCheckpointIO() if in_background else AtomicCheckpointIO()],
        logger=options.pop("logger", False),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )
    return trainer


def _found_learning_rate(cfg: DictConfig, datamodule: ImageDataModule, devices: Devices, folder: Path) -> float:
    from imgcls.learning_rate import find_learning_rate

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
