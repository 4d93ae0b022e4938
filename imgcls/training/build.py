"""The data module, network, classifier and trainer of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf

from imgcls.data.module import ImageDataModule
from imgcls.data.samples import plain_pictures
from imgcls.data.stores.sharing import reuse
from imgcls.errors import UserError
from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from imgcls.models.network import Network
from imgcls.models.whitening import INITIAL_PICTURES, FromPictures
from imgcls.training.checkpoint_io import AtomicCheckpointIO, BackgroundCheckpointIO
from imgcls.training.devices import Devices
from imgcls.training.strategies import choose_strategy


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
