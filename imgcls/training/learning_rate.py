"""A learning rate from the loss curve of a short run with a growing one (Smith 2015, Lightning's `lr_find`)."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch.tuner import Tuner
from omegaconf import DictConfig

from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.models.network import Network
from imgcls.system.files import atomic_write_text
from imgcls.training.build import build_classifier, build_trainer
from imgcls.training.devices import Devices

log = logging.getLogger(__name__)

SMALLEST, LARGEST, STEPS = 1e-6, 1.0, 100


def choose_learning_rate(
    cfg: DictConfig, network: Network, data: ImageDataModule, devices: Devices, folder: Path
) -> float:
    """`optim.lr`, or with `auto` the rate that a search finds, which a resumed run reads from its folder."""
    if cfg.optim.lr != "auto":
        return float(cfg.optim.lr)
    file = folder / "learning_rate.json"
    if file.is_file():
        return float(json.loads(file.read_text())["suggestion"])
    if devices.total > 1:
        raise UserError("optim.lr=auto searches on one device. Find it with trainer.devices=1, then give optim.lr.")
    curve = find_learning_rate(cfg, network, data, devices)
    atomic_write_text(file, json.dumps(curve, indent=2) + "\n")
    log.info("Learning-rate finder: optim.lr=%.3g.", curve["suggestion"])
    return float(curve["suggestion"])


def find_learning_rate(cfg: DictConfig, network: Network, data: ImageDataModule, devices: Devices) -> dict[str, Any]:
    """Train a copy of `network` with growing rates; return `suggestion` and the curve (`lr`, `loss`).

    Raises UserError where the curve has no slope to choose from.
    """
    log.info("Searching for a learning rate in %d steps from %g to %g.", STEPS, SMALLEST, LARGEST)
    classifier = build_classifier(cfg, copy.deepcopy(network), data, devices, SMALLEST)
    options = {"max_epochs": -1, "max_steps": STEPS, "default_root_dir": tempfile.gettempdir()}
    trainer = build_trainer(cfg, devices, data, classifier, callbacks=[], **options)
    finder = Tuner(trainer).lr_find(
        classifier, datamodule=data, min_lr=SMALLEST, max_lr=LARGEST, num_training=STEPS, update_attr=False
    )
    suggestion = finder.suggestion() if finder is not None else None
    if finder is None or suggestion is None:
        raise UserError("optim.lr=auto: the loss never fell, so there is no rate to choose. Give optim.lr a number.")
    return {"suggestion": suggestion, **{name: list(map(float, finder.results[name])) for name in ("lr", "loss")}}
