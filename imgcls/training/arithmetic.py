"""How a training on a CPU computes: memory layout and precision, measured on this machine where `auto` leaves a choice.

Which is faster depends on the network and the processor: channels-last doubles the speed of an EfficientNet and slows
a ConvNeXt, and bfloat16 doubles that of a ResNet only where the processor computes in it. As FFTW does (Frigo and
Johnson 2005), a few timed steps decide, and later runs on this machine use what the first has found: a choice that
noise could flip would change the bits of a run that is repeated.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from imgcls.data.batched import BatchedData
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError, first_line
from imgcls.images.preprocessing import sides
from imgcls.models.network import Network
from imgcls.runs.reading import read_json
from imgcls.system.cache import cache_folder
from imgcls.system.files import atomic_write_text
from imgcls.system.machine import processor_name
from imgcls.training.build import build_classifier
from imgcls.training.devices import Devices
from imgcls.training.plan import freezes_norms

log = logging.getLogger(__name__)

FILE = "arithmetic.json"
VERSION = 4  # of what is measured: other ways to compute make other choices the fastest
FLOAT32, BFLOAT16 = "32-true", "bf16-mixed"
ROUNDS = 3
"""Timed steps of each choice, after one that is not timed; the fastest one counts."""
LAYOUT_MARGIN, PRECISION_MARGIN = 1.05, 1.15
"""How much faster another choice must be than the best so far, at first the rule's: less may be noise, and bfloat16
rounds."""
HOPELESS = 1.4
"""A choice that is slower than the fastest by this factor is not timed again."""
MAX_SECONDS = 4.0
"""Of the processor, per thread, after which no further round begins; without a complete one the rules decide."""
MAX_SHARE = 0.02
"""Of the images that a run trains on, the largest share that may be spent on measuring."""
PIXELS = 16 * 96 * 96
"""Of the images of a timed step, which has at least MIN_IMAGES and at most MAX_IMAGES of them."""
MIN_IMAGES, MAX_IMAGES = 4, 32


@dataclass(frozen=True)
class Arithmetic:
    """The memory layout and the precision of a training."""

    channels_last: bool
    precision: str

    def __str__(self) -> str:
        return f"{'bfloat16' if self.precision == BFLOAT16 else 'float32'}{', channels last' * self.channels_last}"


def choose_arithmetic(
    cfg: DictConfig, network: Network, data: BatchedData, devices: Devices, folder: Path, *, resuming: bool
) -> DictConfig:
    """`cfg` with the layout and precision for `network` on this CPU, where it leaves them to `auto`.

    A run keeps its choice in `arithmetic.json` of its `folder`. The rules of `Devices` remain for one that was begun
    without, several processes, features instead of images, `trainer.deterministic=true`, and runs too short to pay.
    """
    if devices.accelerator != "cpu" or devices.total > 1 or not isinstance(data, ImageDataModule):
        return cfg
    file = folder / FILE
    found = read_json(file)
    if not found:
        choices = [] if resuming or cfg.trainer.deterministic is True else _choices(cfg, network, data, devices)
        count = _images(data)
        if len(choices) * (1 + ROUNDS) * count > MAX_SHARE * _trained_images(cfg, data) or len(choices) < 2:
            return cfg
        found = _find(cfg, network, data, devices, choices, count)
        atomic_write_text(file, json.dumps(found, indent=2) + "\n")
    cfg = cfg.copy()
    cfg.model.channels_last, cfg.trainer.precision = found["channels_last"], found["precision"]
    return cfg


def computes_in_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 (AVX512_BF16, AMX); others only imitate it, slowly."""
    supports = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.backends.mkldnn.is_available() and any(check() for check in supports if check is not None)


def fastest(
    choices: Sequence[Arithmetic], seconds_of: Callable[[Arithmetic], float]
) -> tuple[Arithmetic, dict[Arithmetic, float]]:
    """The first of `choices`, or another that is clearly faster, with the seconds of a step of each.

    Args:
        choices: the first is that of the rules.
        seconds_of: takes a step and returns its seconds, or infinity where this processor cannot take it.
    """
    seconds = dict.fromkeys(choices, math.inf)
    running, began = list(choices), time.process_time()
    for turn in range(1 + ROUNDS):
        if time.process_time() - began > MAX_SECONDS * torch.get_num_threads():
            break
        for choice in running:  # in turns, so that a busy moment slows all of them
            spent = seconds_of(choice)
            if turn or spent == math.inf:
                seconds[choice] = min(seconds[choice], spent)
        if turn:
            running = [choice for choice in running if seconds[choice] <= HOPELESS * min(seconds.values())]
    chosen = choices[0]
    for choice in choices[1:]:
        margin = LAYOUT_MARGIN if choice.precision == chosen.precision else PRECISION_MARGIN
        if seconds[choice] * margin < seconds[chosen] < math.inf:
            chosen = choice
    return chosen, seconds


def _choices(cfg: DictConfig, network: Network, data: ImageDataModule, devices: Devices) -> list[Arithmetic]:
    """What `auto` may choose, the choice of the rules first."""
    layout, precision = cfg.model.channels_last, cfg.trainer.precision
    depthwise = network.has_depthwise_convolutions
    rule = Arithmetic(
        devices.channels_last(layout, min(sides(data.image_size)), depthwise), str(devices.precision(precision))
    )
    layouts = (rule.channels_last, not rule.channels_last) if layout == "auto" else (rule.channels_last,)
    wide = precision == "auto" and computes_in_bfloat16()
    return [Arithmetic(last, name) for name in (rule.precision, *[BFLOAT16] * wide) for last in layouts]


def _images(data: ImageDataModule) -> int:
    """Images of a timed step: few large ones or more small ones, up to those of a step of the training."""
    height, width = sides(data.image_size)
    limit = min(data.batch_size, data.micro_batch_size or data.batch_size, MAX_IMAGES)
    return min(limit, max(MIN_IMAGES, PIXELS // (height * width)))


def _trained_images(cfg: DictConfig, data: ImageDataModule) -> float:
    """How many images the run trains on, counted once per epoch; infinite without an end."""
    if cfg.trainer.get("fast_dev_run"):
        return 0
    limit = cfg.trainer.limit_train_batches
    per_epoch: float = data.steps_per_epoch
    if limit is not None:
        per_epoch = min(per_epoch, limit) if isinstance(limit, int) else per_epoch * limit
    epochs = math.inf if cfg.trainer.max_epochs in (-1, None) else cfg.trainer.max_epochs
    steps = epochs * per_epoch
    return data.batch_size * (min(steps, cfg.trainer.max_steps) if cfg.trainer.max_steps > 0 else steps)


def _find(
    cfg: DictConfig,
    network: Network,
    data: ImageDataModule,
    devices: Devices,
    choices: Sequence[Arithmetic],
    count: int,
) -> dict[str, Any]:
    """The content of `arithmetic.json`: what an earlier run on this machine has found, or else a measurement."""
    shape = (count, data.preprocessing.channels, *data.preprocessing.shape)
    identity = {
        "version": VERSION,
        "architecture": replace(network.architecture, num_classes=1).as_dict(),
        "choices": [asdict(choice) for choice in choices],
        "images": shape,
        "trained": [cfg.model.freeze, cfg.model.get("adapter"), freezes_norms(cfg, len(data.source.train))],
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:32]
    cached = cache_folder() / "arithmetic" / f"{name}.json"
    with contextlib.suppress(UserError, KeyError):  # damaged
        if found := read_json(cached):
            chosen = Arithmetic(found["channels_last"], found["precision"])
            log.info("Computing in %s, the fastest for this network on this machine, as measured before.", chosen)
            return dict(found)
    began = time.monotonic()
    chosen, seconds = fastest(choices, _Clock(cfg, network, data, devices, torch.Size(shape)))
    before, now = seconds[choices[0]], seconds[chosen]
    if now == math.inf:
        reason = ", since a step takes too long"
    elif chosen == choices[0]:
        reason = ", the fastest"
    else:
        reason = f": {before / now:.2f} times as fast as in {choices[0]}"
    log.info(
        "Computing in %s%s, in steps of %d images; measured in %.1f s.",
        chosen,
        reason,
        count,
        time.monotonic() - began,
    )
    figures = {str(choice): round(spent, 6) for choice, spent in seconds.items() if spent < math.inf}
    found = {**asdict(chosen), "processor_seconds": figures, **identity}
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(cached, json.dumps(found, indent=2) + "\n")
    except (OSError, UserError) as error:
        log.debug("%s is not kept: %s", cached, first_line(error))
    return found


class _Clock:
    """Takes single steps of copies of a network, forward and backward, on random images.

    Returns seconds of the processor, of all threads: on a busy machine those of the clock say nothing.
    """

    def __init__(
        self, cfg: DictConfig, network: Network, data: ImageDataModule, devices: Devices, shape: torch.Size
    ) -> None:
        self._parts = cfg, network, data, devices
        self._images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self._classifiers: dict[bool, Any] = {}

    def __call__(self, choice: Arithmetic) -> float:
        with torch.random.fork_rng(devices=[]):
            try:
                classifier = self._classifier(choice.channels_last)
                began = time.process_time()
                enabled = choice.precision == BFLOAT16
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False):
                    logits = classifier(self._images)
                logits.float().square().mean().backward()
                return time.process_time() - began
            except (RuntimeError, NotImplementedError) as error:
                log.debug("%s is not for this network: %s", choice, first_line(error))
                return math.inf

    def _classifier(self, channels_last: bool) -> Any:
        if channels_last not in self._classifiers:
            cfg, network, data, devices = self._parts
            cfg = cfg.copy()
            cfg.model.channels_last, cfg.model.compile = channels_last, False
            classifier = build_classifier(cfg, copy.deepcopy(network), data, devices, 1.0)
            classifier.train()
            classifier.network.freeze(classifier.freeze_mode == "backbone")
            self._classifiers[channels_last] = classifier
        return self._classifiers[channels_last]
