"""The parts of a run, built from its configuration: data module, network, classifier, callbacks, trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf

from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.callbacks.epoch_table import epoch_printer
from imgcls.callbacks.feature_sample import FeatureSample
from imgcls.callbacks.history import History
from imgcls.callbacks.last_validation import LastValidation
from imgcls.callbacks.progress_bar import ProgressBar
from imgcls.callbacks.timing import Timing
from imgcls.config.starts import is_multilabel
from imgcls.data.augment import Augment
from imgcls.data.batched import BatchedData
from imgcls.data.folds import Fold, open_fold
from imgcls.data.module import ImageDataModule, Opened
from imgcls.data.samples import sample_training_images
from imgcls.data.stores.sharing import recall, remember
from imgcls.errors import UserError
from imgcls.images.preprocessing import sides
from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from imgcls.models.ema import WeightAveraging
from imgcls.models.network import Network
from imgcls.models.small_maps import use_linear_layers_for_small_maps
from imgcls.models.whitening import INITIAL_PICTURES, FromPictures
from imgcls.system.interrupts import StopSignals
from imgcls.training.checkpoint_io import AtomicCheckpointIO, BackgroundCheckpointIO
from imgcls.training.devices import Devices
from imgcls.training.outputs import calibrates, keeps_weights
from imgcls.training.own_parts import make, make_loss, make_metrics, make_schedule
from imgcls.training.plan import freezes_norms
from imgcls.training.strategies import choose_strategy


def build_data(
    cfg: DictConfig, devices: Devices, micro_batch_size: int | None = None, *, plain: bool = False
) -> ImageDataModule:
    """The data module of `cfg`, with its files in place; `plain` disables the augmentation."""
    given: dict[str, Any] = {"augment": Augment()} if plain else {}
    if micro_batch_size is not None:
        given["micro_batch_size"] = micro_batch_size
    if (fold := cfg.data.get("fold")) is None:
        return _build_data(cfg, devices, recall(cfg.data), **given)
    whole = build_whole(cfg, devices, **given)
    opened = open_fold(whole, Fold.parse(fold), cfg.data.get("val_fraction") or 0.0)
    return _build_data(cfg, devices, opened, **given)


def build_whole(cfg: DictConfig, devices: Devices, **given: Any) -> ImageDataModule:
    """The data module of all images that folds are cut from, which the folds of one process share."""
    key = {**cfg.data, "fold": "all"}
    whole = _build_data(cfg, devices, recall(key), **given, val_fraction=0.0, fold=None)
    remember(whole.opened, key)
    return whole


def _build_data(cfg: DictConfig, devices: Devices, opened: Opened | None, **given: Any) -> ImageDataModule:
    datamodule: ImageDataModule = make("data", cfg.data, _partial_=True)(
        world_size=devices.total,
        opened=opened,
        pretrained_statistics=pretrained_statistics(cfg.model.name),
        **given,
    )
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
    """The network of `cfg` for the classes of `datamodule`; `pretrained=False` if a checkpoint is loaded into it.

    Raises UserError if images have several labels, which the configuration does not say, or the other way round.
    """
    if datamodule.multilabel != is_multilabel(cfg):
        lists = "Images have lists of labels: add task=multilabel."
        raise UserError(lists if datamodule.multilabel else "task=multilabel needs lists of labels: see docs/data.md.")
    model = cfg.model
    if datamodule.depth.channels != model.get("in_channels", 3):
        raise UserError("data.channels and model.in_channels must be the same. Set model.in_channels alone.")
    L.seed_everything(cfg.seed, verbose=False)  # the head's random weights must not depend on what ran before
    network = create_network(
        model.name,
        datamodule.num_classes,
        pretrained=pretrained and model.pretrained and model.weights is None,
        weights=Path(model.weights).expanduser() if pretrained and model.weights is not None else None,
        class_names=datamodule.class_names,
        stem=model.stem,
        head=make("model.head", model.head),
        drop_rate=model.drop_rate,
        drop_path_rate=model.drop_path_rate,
        image_size=datamodule.image_size,
        options=OmegaConf.to_container(model.options) if model.get("options") else None,  # type: ignore[arg-type]
        views=model.get("views", "one"),
        in_channels=model.get("in_channels", 3),
    )
    if pretrained and model.weights is None and isinstance(network.backbone, FromPictures):
        network.backbone.initialise_from(sample_training_images(datamodule, INITIAL_PICTURES))
    use_linear_layers_for_small_maps(network.backbone)
    return network


def build_classifier(
    cfg: DictConfig, network: Network, datamodule: BatchedData, devices: Devices, learning_rate: float
) -> Classifier:
    """The LightningModule of `cfg` that trains `network` on `datamodule`."""
    model, loss, classes = cfg.model, cfg.loss, datamodule.num_classes
    mixing = datamodule.augment.mixing
    weights = class_weights(loss.get("class_weights"), datamodule)
    return Classifier(
        network,
        optim=make("optim", cfg.optim, lr=learning_rate, schedule=make_schedule(cfg.optim.schedule)),
        class_names=datamodule.class_names,
        label_smoothing=loss.get("label_smoothing", 0.0),
        class_weights=weights,
        focal_gamma=loss.get("focal_gamma", 0.0),
        negative_gamma=loss.get("negative_gamma", 0.0),
        multilabel=datamodule.multilabel,
        loss=make_loss(loss, weights, soft=mixing is not None and mixing.active, num_classes=classes),
        metrics=make_metrics(cfg.metrics, classes, multilabel=datamodule.multilabel),
        freeze=model.freeze,
        unfreeze_epoch=model.unfreeze_epoch,
        freeze_norms=freezes_norms(cfg, len(datamodule.source.train)),
        channels_last=devices.channels_last(
            model.channels_last, min(sides(datamodule.image_size)), network.has_depthwise_convolutions
        ),
        compile=devices.compile(model.compile, datamodule.steps_per_epoch * cfg.trainer.max_epochs),
        seed=cfg.seed,
    )


def restore_classifier(
    cfg: DictConfig, datamodule: ImageDataModule, devices: Devices, state: Mapping[str, Any]
) -> Classifier:
    """The classifier of `cfg` with the weights in `state`, from a checkpoint, to evaluate or export it."""
    classifier = build_classifier(cfg, build_network(cfg, datamodule, pretrained=False), datamodule, devices, 1.0)
    classifier.network.load_state_dict(
        {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    )  # a custom loss may have stored more
    return classifier


def class_weights(choice: Any, datamodule: BatchedData) -> torch.Tensor | None:
    """The weights of the classes in the loss, shape (C,), for `loss.class_weights`: null, a list, or 'balanced'.

    'balanced' weighs each class by the inverse of its number of training images, with a mean of 1 over the images.
    """
    if choice is None:
        return None
    counts = datamodule.class_counts().float()
    if choice == "balanced":
        return counts.sum() / (len(counts) * counts.clamp(min=1))
    weights = torch.tensor([float(weight) for weight in choice])
    if len(weights) != len(counts):
        raise UserError(f"loss.class_weights has {len(weights)} weights, but there are {len(counts)} classes.")
    return weights


def build_callbacks(
    cfg: DictConfig,
    folder: Path,
    stop: StopSignals,
    datamodule: BatchedData,
    classifier: Classifier,
    timing: Timing,
    *,
    solved: bool = False,
) -> tuple[History, Checkpoints, list[L.Callback]]:
    """Two callbacks whose results are used afterwards, and all callbacks in the order in which Lightning calls them.

    Callbacks that change the weights come first, so that the others see the weights after a step. Timing comes before
    the slow ones. Lightning moves every Checkpoint to the end, in this order: History, whose row then has all metrics
    of its epoch; the Recorder of `debug.*`, whose rules check that row; and Checkpoints, which store the row and the
    state of all others.
    """
    announce = epoch_printer(cfg.checkpoint.monitor, cfg.checkpoint.mode, 0 if solved else cfg.trainer.max_epochs)
    history = History(folder / "metrics.csv", announce=None if cfg.quiet else announce)
    checkpoints: Checkpoints = instantiate(cfg.checkpoint, folder=folder / "checkpoints", stop=stop)
    lookahead = classifier.optim.lookahead
    callbacks: list[L.Callback] = [
        *([lookahead] if lookahead is not None else []),
        *([WeightAveraging(decay=cfg.optim.ema)] if cfg.optim.ema is not None else []),
        timing,
        ProgressBar(enabled=False if solved else None),
        history,
        FeatureSample(folder / "report_data"),
        *([LastValidation()] if calibrates(cfg, datamodule) and keeps_weights(cfg) else []),
        *_build_debug_callbacks(cfg, folder, datamodule),
        *([instantiate(cfg.early_stopping)] if cfg.early_stopping.get("_target_") else []),
        *(make(f"callbacks.{name}", callback) for name, callback in cfg.callbacks.items()),
        checkpoints,
    ]
    return history, checkpoints, callbacks


def _build_debug_callbacks(cfg: DictConfig, folder: Path, datamodule: BatchedData) -> list[L.Callback]:
    if not cfg.debug.get("_target_"):
        return []
    counts: list[int] = datamodule.class_counts().tolist()
    if datamodule.sampler == "balanced" or cfg.loss.get("class_weights") == "balanced":
        counts = [sum(counts) // len(counts)] * len(counts)  # sampled or weighted to count the same
    return instantiate(cfg.debug, folder=folder / "debug", class_counts=counts, _convert_="all")


def build_trainer(
    cfg: DictConfig,
    devices: Devices,
    datamodule: BatchedData,
    classifier: Classifier,
    callbacks: list[L.Callback],
    **options: Any,
) -> L.Trainer:
    """Lightning's Trainer from `cfg.trainer`, with the settings that imgcls chooses."""
    strategy = choose_strategy(
        options.pop("strategy", cfg.trainer.strategy),
        devices.total,
        find_unused_parameters=classifier.needs_find_unused_parameters,
    )
    write_in_background = devices.write_in_background(cfg.checkpoint.get("in_background", False))
    return instantiate(
        cfg.trainer,
        _convert_="all",
        callbacks=callbacks,
        accelerator=devices.accelerator,
        devices=devices.indices,
        strategy=strategy,
        precision=devices.precision(cfg.trainer.precision),
        accumulate_grad_batches=datamodule.accumulation,
        plugins=[BackgroundCheckpointIO() if write_in_background else AtomicCheckpointIO()],
        logger=options.pop("logger", False),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )
