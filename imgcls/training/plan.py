"""What a training adapts to its number of images and classes, by rules that are written here."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from omegaconf import DictConfig

from imgcls.data.module import ImageDataModule

log = logging.getLogger(__name__)

FEW_IMAGES = 10_000
"""With fewer training images than this, the statistics of batch norms are better kept than adapted."""


@dataclass(frozen=True)
class Plan:
    """What a training does with its images.

    Attributes:
        preset: its name.
        images: number of training images.
        classes: number of classes.
        epochs: number of epochs; -1 or None: endless.
        batch: images per step.
        rate_share: share of `optim.lr` that is used.
        frozen_norms: whether the backbone's batch norms keep their statistics.
        solved: whether the head is solved, so that there are no steps.
    """

    preset: str
    images: int
    classes: int
    epochs: int | None
    batch: int
    rate_share: float
    frozen_norms: bool
    solved: bool

    def __str__(self) -> str:
        size = f"preset={self.preset} for {self.images:,} images, {self.classes:,} classes"
        if self.solved:
            return f"{size}: the head is solved on features."
        share = "" if self.rate_share == 1 else f", {self.rate_share:.2g} of the learning rate"
        norms = ", batch norms keep their statistics" if self.frozen_norms else ""
        length = {1: "1 epoch", -1: "any number of epochs", None: "any number of epochs"}.get(
            self.epochs, f"{self.epochs} epochs"
        )
        return f"{size}: {length}, batches of {self.batch}{share}{norms}."


def follow_plan(cfg: DictConfig, images: ImageDataModule, *, solved: bool) -> DictConfig:
    """`cfg` with the number of epochs that suits `images`, after a line in the log that names the plan."""
    plan = plan_training(cfg, images, solved=solved)
    log.info("%s", plan)
    cfg = cfg.copy()
    cfg.trainer.max_epochs = plan.epochs
    return cfg


def plan_training(cfg: DictConfig, images: ImageDataModule, *, solved: bool) -> Plan:
    """The plan of `cfg` for its training images."""
    count = len(images.source.train)
    return Plan(
        preset=cfg.preset.name,
        images=count,
        classes=images.num_classes,
        epochs=epochs(cfg, images.steps_per_epoch),
        batch=images.batch_size,
        rate_share=rate_share(cfg.optim.get("few_images"), count / images.num_classes),
        frozen_norms=freezes_norms(cfg, count),
        solved=solved,
    )


def epochs(cfg: DictConfig, steps_per_epoch: int) -> int | None:
    """`trainer.max_epochs`, or the more that `preset.steps` asks for where the images are few."""
    preset, given = cfg.preset, cfg.trainer.max_epochs
    fine_tunes = cfg.model.freeze != "backbone" and (cfg.model.pretrained or cfg.model.weights is not None)
    if not fine_tunes or given in (-1, None):
        return given
    wanted = math.ceil(preset.steps / max(1, steps_per_epoch))
    return max(given, min(wanted, preset.longest))


def rate_share(few: int | None, per_class: float) -> float:
    """The share of the learning rate to use: with fewer than `few` images per class, the square root of their share.

    Five images per class say little about where a backbone should go: a half to a third of the rate that suits sixty
    was better there.
    """
    return 1.0 if not few or per_class >= few else math.sqrt(per_class / few)


def freezes_norms(cfg: DictConfig, images: int) -> bool:
    """Whether the batch norms of the backbone keep their statistics: `model.batch_norm`."""
    choice = cfg.model.get("batch_norm") or "train"
    if choice != "auto":
        return bool(choice == "frozen")
    trained = (cfg.model.pretrained or cfg.model.weights is not None) and cfg.model.stem == "standard"
    return trained and images < FEW_IMAGES
