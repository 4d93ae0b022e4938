"""The parts of a run, built from its configuration: data module, network, classifier, callbacks, trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf

from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.callbacks.history import History
from imgcls.callbacks.progress_bar import ProgressBar
from imgcls.callbacks.timing import Timing
from imgcls.data.augment import Augment
from imgcls.data.module import ImageDataModule
from imgcls.data.samples import sample_training_images
from imgcls.data.stores.sharing import recall
from imgcls.errors import UserError
from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from imgcls.models.ema import WeightAveraging
from imgcls.models.network import Network
from imgcls.models.whitening import INITIAL_PICTURES, FromPictures
from imgcls.system.bars import say
from imgcls.system.interrupts import StopSignals
from imgcls.training.checkpoint_io import AtomicCheckpointIO, BackgroundCheckpointIO
from imgcls.training.devices import Devices
from imgcls.training.strategies import choose_strategy


def build_data(
    cfg: DictConfig, devices: Devices, micro_batch_size: int | None = None, *, plain: bool = False
) -> ImageDataModule:
    """The data module of `cfg`, its files in place; `plain` leaves the augmentation out."""
    opened = recall(cfg.data)
    given: dict[str, Any] = {"world_size": devices.total, "opened": opened}
    given["pretrained_statistics"] = pretrained_statistics(cfg.model.name)
    if micro_batch_size is not None:
        given["micro_batch_size"] = micro_batch_size
    if plain:
        given["augment"] = Augment()
    datamodule: ImageDataModule = instantiate(cfg.data, _convert_="all", _partial_=True)(**given)
    if opened is None:
        datamodule.prepare_data()
    return datamodule


def pretrained_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels that timm's weights of this model were trained with."""
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    fallback = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return (config.mean, config.std) if config is not None else fallback


def build_network(cfg: DictConfig, datamodule: ImageDataModule, *, pretrained: bool = True) -> Network:
    """The network of `cfg` for the classes of `datamodule`; without its weights where a checkpoint is read into it."""
    model = cfg.model
    L.seed_everything(cfg.seed, verbose=False)  # the head's random weights do not depend on what was done before
    network = create_network(
        model.name,
        datamodule.num_classes,
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
    if pretrained and model.weights is None and isinstance(network.backbone, FromPictures):
        network.backbone.initialise_from(sample_training_images(datamodule, INITIAL_PICTURES))
    return network


def build_classifier(
    cfg: DictConfig, network: Network, datamodule: ImageDataModule, devices: Devices, learning_rate: float
) -> Classifier:
    """The LightningModule of `cfg` that trains `network` on `datamodule`."""
    model, loss = cfg.model, cfg.loss
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
        compile=devices.compile(model.compile, datamodule.steps_per_epoch * cfg.trainer.max_epochs),
        seed=cfg.seed,
    )


def restore_classifier(
    cfg: DictConfig, datamodule: ImageDataModule, devices: Devices, state: Mapping[str, Any]
) -> Classifier:
    """The classifier of `cfg` with the weights in `state`, a checkpoint's, to be evaluated or exported."""
    classifier = build_classifier(cfg, build_network(cfg, datamodule, pretrained=False), datamodule, devices, 1.0)
    classifier.load_state_dict(state)
    return classifier


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


@dataclass(frozen=True)
class RunCallbacks:
    """The callbacks of a run: those that are asked for their results afterwards, and all of them in order."""

    timing: Timing
    history: History
    checkpoints: Checkpoints
    in_order: list[L.Callback]


def build_callbacks(
    cfg: DictConfig,
    folder: Path,
    stop: StopSignals,
    datamodule: ImageDataModule,
    classifier: Classifier,
    timing: Timing,
) -> RunCallbacks:
    """The callbacks of a training, in the order in which Lightning calls them.

    Those that change the weights come first, so that the others see the weights that a step leaves. Timing stands
    before what takes time. Lightning moves every Checkpoint to the end, in this order: History, whose row then has all
    metrics of its epoch; the Recorder of `debug.*`, whose rules look at that row; and Checkpoints, which hold the row
    and the state of all others.
    """
    history = History(folder / "metrics.csv", announce=None if cfg.quiet else say)
    checkpoints: Checkpoints = instantiate(cfg.checkpoint, folder=folder / "checkpoints", stop=stop)
    lookahead = classifier.optim.lookahead
    in_order: list[L.Callback] = [
        *([lookahead] if lookahead is not None else []),
        *([WeightAveraging(decay=cfg.optim.ema)] if cfg.optim.ema is not None else []),
        timing,
        ProgressBar(),
        history,
        *_watching(cfg, folder, datamodule),
        *([instantiate(cfg.early_stopping)] if cfg.early_stopping.get("_target_") else []),
        *instantiate(cfg.callbacks, _convert_="all").values(),
        checkpoints,
    ]
    return RunCallbacks(timing, history, checkpoints, in_order)


def _watching(cfg: DictConfig, folder: Path, datamodule: ImageDataModule) -> list[L.Callback]:
    """The callbacks of `debug.*`."""
    if not cfg.debug.get("_target_"):
        return []
    counts: list[int] = datamodule.class_counts().tolist()
    if datamodule.sampler == "balanced" or cfg.loss.class_weights == "balanced":
        counts = [sum(counts) // len(counts)] * len(counts)  # drawn or weighted to count the same
    callbacks: list[L.Callback] = instantiate(cfg.debug, folder=folder / "debug", class_counts=counts, _convert_="all")
    return callbacks


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
