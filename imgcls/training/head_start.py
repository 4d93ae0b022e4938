"""Between a new network and its first step: the features of a frozen backbone, the head solved on them, adapters."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from imgcls.data.batched import BatchedData
from imgcls.data.feature_module import FeatureDataModule
from imgcls.data.module import ImageDataModule
from imgcls.models.adapters import add_adapters
from imgcls.models.memory import Memory
from imgcls.models.network import Network
from imgcls.training.build import class_weights
from imgcls.training.checkpoint_io import read_checkpoint
from imgcls.training.devices import Devices
from imgcls.training.frozen_backbone import compute_features
from imgcls.training.memory_head import check_memory, fill_memory
from imgcls.training.mixture import save_start
from imgcls.training.own_parts import with_code
from imgcls.training.solved_head import is_solvable, solve_head

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """What the steps of a training begin with.

    Attributes:
        data: the images, or their features where the frozen backbone runs only once.
        solved: whether the head is the solution already, and no step changes it.
    """

    data: BatchedData
    solved: bool


def prepare_head(
    cfg: DictConfig,
    images: ImageDataModule,
    network: Network,
    devices: Devices,
    folder: Path,
    resume_from: Path | None,
) -> Start:
    """Compute the features that a frozen backbone needs, and solve the head of `network` if `model.solve_head` says so.

    Fine-tuning starts from the solved head (Kumar et al. 2022), or from that of another run with the same classes.
    `folder` is that of the run, which keeps this start. Adapters are added last, if `model.adapter` says so.
    """
    device = devices.torch_device(int(os.environ.get("LOCAL_RANK", "0")))
    once = _runs_backbone_once(cfg)
    solves = _solves(cfg, images, network)
    data: BatchedData = images
    features = None
    if once:
        if resume_from is not None:
            _load_network(network, resume_from)
        if cfg.model.feature_views == 0:
            log.info(
                "The backbone is frozen: the head %s its features of the unaugmented images, computed once. "
                "model.feature_views=8 uses 8 augmented views, null a new one in every epoch.",
                "keeps" if isinstance(network.head, Memory) else "is solved on" if solves else "trains on",
            )
        features = compute_features(
            images,
            network,
            views=cfg.model.feature_views,
            augmentation=with_code(cfg.data.augment),
            device=device,
            splits=tuple(split for split in images.source.splits() if cfg.test or split != "test"),
        )
        data = FeatureDataModule(
            images,
            features,
            whole=solves and not isinstance(network.head, Memory),
            augmented=cfg.model.feature_views > 0,
        )
    if solves and resume_from is None and (once or not network.trained_head):
        if features is None:
            features = compute_features(images, network, device=device, splits=("train", "val"))
        if isinstance(network.head, Memory):
            fill_memory(network.head, images, features, device)
        else:
            solve_head(
                network,
                images,
                features,
                class_weights=class_weights(cfg.loss.get("class_weights"), images),
                by_loss=cfg.checkpoint.monitor == "val/loss",
                device=device,
            )
        if not once and cfg.checkpoint.average == "start" and int(os.environ.get("RANK", "0")) == 0:
            save_start(network, folder / "checkpoints")
    if cfg.model.get("adapter") == "lora":
        add_adapters(network, cfg.model.adapter_rank, images.preprocessing.shape, cfg.seed)
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in network.parameters())
        log.info("Adapters and head are trained: %.2f %% of %d parameters.", 100 * trained / total, total)
    return Start(data, solved=once and solves)


def sees_images_once(cfg: DictConfig) -> bool:
    """Whether the training sees each image once, without augmentation."""
    return _runs_backbone_once(cfg) and cfg.model.feature_views == 0


def _runs_backbone_once(cfg: DictConfig) -> bool:
    return cfg.model.freeze == "backbone" and cfg.model.feature_views is not None


def _solves(cfg: DictConfig, images: ImageDataModule, network: Network) -> bool:
    """Whether the head is solved on features: `model.solve_head`, for as many images as can be."""
    size = len(images.source.train), network.num_features, images.num_classes
    if isinstance(network.head, Memory):
        check_memory(network.head, images, frozen=_runs_backbone_once(cfg))
        return True
    return bool(cfg.model.get("solve_head")) and is_solvable(*size) and images.source.train.weights is None


def _load_network(network: Network, checkpoint: Path) -> None:
    prefix = "network."
    state = read_checkpoint(checkpoint)["state_dict"]
    network.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
