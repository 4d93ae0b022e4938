"""Finds a learning rate from the loss of short trainings with growing rates: the range test of Smith (2015)."""

from __future__ import annotations

import copy
import json
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from omegaconf import DictConfig

from imgcls.data.batched import BatchedData
from imgcls.errors import UserError
from imgcls.models.network import Network
from imgcls.system.files import atomic_write_text
from imgcls.training.build import build_classifier, build_trainer
from imgcls.training.devices import Devices
from imgcls.training.plan import rate_share

log = logging.getLogger(__name__)

MIN_RATE, MAX_RATE, STEPS, STARTS = 1e-6, 10.0, 120, 3
SMOOTHING_DECADES = 0.15
"""Standard deviation of the kernel that smooths the mean curve, in powers of ten of the rate."""
DIVERGENCE = 3.0
"""A start ends when its loss exceeds its first one by this factor."""
MIN_STEPS = 10
NEVER_FELL = "optim.lr=auto: the loss never fell, so there is no rate to choose. Give optim.lr a number."
FALL_BEGIN, MIN_FALL = 0.1, 0.02
"""The fall begins after a tenth of it; less than 2 % of the first loss does not count as a fall."""


@dataclass(frozen=True)
class Curve:
    """The loss by learning rate, and the suggestions from it.

    Attributes:
        lr: the rates, ascending.
        loss: mean of the starts, smoothed.
        steepest: the rate at which the loss falls fastest.
        tenth: a tenth of the rate with the lowest loss.
        valley: the rate two thirds through the fall (as in fastai's `lr_find`).
        suggestion: the largest of these three within the fall, because a schedule reaches it only for a moment.
    """

    lr: list[float]
    loss: list[float]
    steepest: float
    tenth: float
    valley: float
    suggestion: float


def choose_learning_rate(cfg: DictConfig, network: Network, data: BatchedData, devices: Devices, folder: Path) -> float:
    """The share of `optim.lr` that suits the images, or for `auto` that of a search, which a resumed run reads."""
    if cfg.optim.lr != "auto":
        share = rate_share(cfg.optim.get("few_images"), len(data.source.train) / data.num_classes)
        return float(cfg.optim.lr) * share
    file = folder / "learning_rate.json"
    if file.is_file():
        return float(json.loads(file.read_text(encoding="utf-8"))["suggestion"])
    if devices.total > 1:
        raise UserError("optim.lr=auto searches on one device. Find it with trainer.devices=1, then give optim.lr.")
    curve = find_learning_rate(cfg, network, data, devices)
    atomic_write_text(file, json.dumps(asdict(curve), indent=2) + "\n")
    log.info("Learning-rate finder: optim.lr=%.2g.", curve.suggestion)
    return curve.suggestion


def find_learning_rate(cfg: DictConfig, network: Network, data: BatchedData, devices: Devices) -> Curve:
    """Train copies of `network` with growing rates, and read the curve of their mean loss.

    Raises UserError if the loss never fell.
    """
    log.info("Searching for a learning rate: %d short trainings, from %g to %g.", STARTS, MIN_RATE, MAX_RATE)
    rates = np.geomspace(MIN_RATE, MAX_RATE, STEPS)
    losses = []
    for start in range(STARTS):
        L.seed_everything(cfg.seed + start, verbose=False)
        sweep = _GrowingRate(rates)
        classifier = build_classifier(cfg, copy.deepcopy(network), data, devices, 1.0)
        options: dict[str, Any] = {"max_epochs": -1, "max_steps": STEPS, "limit_val_batches": 0}
        options["default_root_dir"] = tempfile.gettempdir()
        trainer = build_trainer(cfg, devices, data, classifier, [sweep], **options)
        trainer.fit(classifier, datamodule=data)
        losses.append(sweep.losses)
    L.seed_everything(cfg.seed, verbose=False)
    return read_curve(rates, losses)


def read_curve(rates: np.ndarray, losses: Sequence[Sequence[float]]) -> Curve:
    """The curve of the losses of several starts.

    Args:
        rates: float (S,), each a constant factor above the previous one.
        losses: up to S values per start, at the first of the rates.

    Raises:
        UserError: the loss never fell.
    """
    length = min(map(len, losses))
    if length < MIN_STEPS:
        raise UserError(NEVER_FELL)
    rates = rates[:length]
    loss = _smooth(np.mean([values[:length] for values in losses], axis=0), float(np.log10(rates[1] / rates[0])))
    first = float(np.median(loss[: max(3, length // 8)]))
    lowest = int(np.argmin(loss))
    drop = first - float(loss[lowest])
    if lowest < 2 or drop < MIN_FALL * abs(first):
        raise UserError(NEVER_FELL)
    before = np.flatnonzero(loss[:lowest] > first - FALL_BEGIN * drop)
    begin = int(before[-1]) if len(before) else 0
    slope = np.gradient(loss[begin : lowest + 1]) if lowest > begin else np.zeros(1)
    low, high = float(rates[begin]), float(rates[lowest])
    steepest = float(rates[begin + int(np.argmin(slope))])
    tenth = max(low, high / 10)
    valley = float(rates[begin + round((lowest - begin) * 2 / 3)])
    suggestion = min(high, max(low, steepest, tenth, valley))
    return Curve(rates.tolist(), loss.tolist(), steepest, tenth, valley, suggestion)


def _smooth(values: np.ndarray, decades_per_step: float) -> np.ndarray:
    """`values` smoothed by a Gaussian kernel over the logarithm of the rate, normalised at the ends."""
    width = SMOOTHING_DECADES / decades_per_step
    steps = np.arange(len(values))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2)
    return weights @ values / weights.sum(axis=1)


class _GrowingRate(L.Callback):
    """Sets the rate of each optimiser step, keeps its loss, and stops when the loss explodes."""

    def __init__(self, rates: np.ndarray) -> None:
        self.rates = rates
        self.losses: list[float] = []
        self._shares: list[float] = []
        self._parts: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        self._shares = [group.get("initial_lr", group["lr"]) for group in groups]  # relative to a rate of 1

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        rate = float(self.rates[min(trainer.global_step, len(self.rates) - 1)])
        for group, share in zip(trainer.optimizers[0].param_groups, self._shares, strict=True):
            group["lr"] = rate * share

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._parts.append(float(loss))
        if trainer.global_step == len(self.losses):
            return  # within an optimiser step
        self.losses.append(sum(self._parts) / len(self._parts))
        self._parts = []
        if not math.isfinite(self.losses[-1]) or self.losses[-1] > DIVERGENCE * max(self.losses[0], 1e-3):
            self.losses.pop()
            trainer.should_stop = True
