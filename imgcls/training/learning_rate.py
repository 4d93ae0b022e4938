"""A learning rate from the loss curve of a short run with a growing one (Smith 2015, Lightning's `lr_find`)."""

from __future__ import annotations

import logging
import tempfile
from typing import Any

from lightning.pytorch.tuner import Tuner
from omegaconf import DictConfig

from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.training.devices import Devices

log = logging.getLogger(__name__)

SMALLEST, LARGEST, STEPS = 1e-6, 1.0, 100


def find_learning_rate(cfg: DictConfig, datamodule: ImageDataModule, devices: Devices) -> dict[str, Any]:
    """Train a throw-away copy with growing rates; return `suggestion` and the curve (`lr`, `loss`).

    Raises UserError where the curve has no slope to choose from.
    """
    from imgcls.training.build import build_classifier, build_trainer

    log.info("Searching for a learning rate in %d steps from %g to %g.", STEPS, SMALLEST, LARGEST)
    classifier = build_classifier(cfg, datamodule, devices, learning_rate=SMALLEST)
    options = {"max_epochs": -1, "max_steps": STEPS, "default_root_dir": tempfile.gettempdir()}
    trainer = build_trainer(cfg, devices, datamodule, classifier, callbacks=[], **options)
    finder = Tuner(trainer).lr_find(
        classifier, datamodule=datamodule, min_lr=SMALLEST, max_lr=LARGEST, num_training=STEPS, update_attr=False
    )
    suggestion = finder.suggestion() if finder is not None else None
    if finder is None or suggestion is None:
        raise UserError("optim.lr=auto: the loss never fell, so there is no rate to choose. Give optim.lr a number.")
    return {"suggestion": suggestion, **{name: list(map(float, finder.results[name])) for name in ("lr", "loss")}}
