"""Optimisers with their schedules, and the learning rate and weight decay of each parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from imgcls.errors import UserError, first_line, nearest
from imgcls.models.lookahead import Lookahead
from imgcls.models.network import Network
from imgcls.models.schedules import SCHEDULES, Schedule
from imgcls.system.checks import check_value, choice

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass
class Optim:
    """The options that all optimisers share; use AdamW, Adam or SGD.

    Args:
        lr: the largest learning rate, that of the head.
        weight_decay: for weights of two or more dimensions; norms, biases and what the timm model exempts (position
            embeddings of a transformer) are not decayed.
        schedule, warmup_epochs, initial_lr_ratio, final_lr_ratio: see `imgcls.models.schedules`. A `schedule` that is
            no name is called with the optimiser, and `steps` and `steps_per_epoch` if it takes them, and returns one of
            torch's schedulers, which is stepped after each optimiser step; the other three then do nothing.
        few_images: training images per class below which the training lowers `lr`; 0: never. Read by the training.
        layer_decay: factor of the learning rate from each layer to the one below it; 1: none.
        backbone_lr_scale: the backbone's learning rate as a share of the head's.
        norm_lr_scale: factor of the learning rate of the shifts and scales of norms.
        decay_biases: decay norms and biases too.
        ema: decay of the exponential moving average of the weights; None: no average. Read by the training.
        lookahead: resets the weights to a slow average of them; None: off. Read by the training.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str | Callable[..., LRScheduler] = "cosine"
    warmup_epochs: float = 0.0
    initial_lr_ratio: float = 0.0
    final_lr_ratio: float = 0.0
    few_images: int = 0
    layer_decay: float = 1.0
    backbone_lr_scale: float = 1.0
    norm_lr_scale: float = 1.0
    decay_biases: bool = False
    ema: float | None = None
    lookahead: Lookahead | None = None

    def __post_init__(self) -> None:
        if not callable(self.schedule):
            check_value("optim.schedule", self.schedule, choice(*SCHEDULES))

    def optimizer(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        """The torch optimiser of these parameter groups."""
        raise NotImplementedError

    def build(
        self, network: Network, steps: float, steps_per_epoch: float, *, fused: bool = True
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The optimiser of `network` and its schedule, which is stepped after each optimiser step.

        Args:
            network: the network to train; frozen parameters are left out.
            steps: optimiser steps of the whole training; infinite only with the constant schedule.
            steps_per_epoch: optimiser steps per epoch.
            fused: use torch's fused implementation where the device has one; not with a gradient scaler, whose
                gradients Lightning could then not clip.
        """
        optimizer = self.optimizer(self.parameter_groups(network), fused)
        if not isinstance(self.schedule, str):
            return optimizer, _custom_schedule(self.schedule, optimizer, steps, steps_per_epoch)
        warmup = self.warmup_epochs * steps_per_epoch if self.warmup_epochs else 0.0
        schedule = Schedule(self.schedule, steps, warmup, self.final_lr_ratio, self.initial_lr_ratio)
        return optimizer, LambdaLR(optimizer, schedule)

    def parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        """One group for each pair of learning rate and weight decay, those of the head last, without frozen parameters.

        Head and backbone never share a group: torch's fused SGD needs the whole group to take its first step together,
        and 'head_first' starts them at different times.
        """
        scales = self._scales(network)
        exempt: set[str] = set(getattr(network.backbone, "no_weight_decay", set)())
        groups: dict[tuple[bool, float, float], dict[str, Any]] = {}
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            skip = network.dimensions[name] < 2 or name.endswith(".bias") or name.removeprefix("backbone.") in exempt
            decay, scale = 0.0 if skip and not self.decay_biases else self.weight_decay, scales[name]
            key = (name.startswith("head."), scale, decay)
            group = groups.setdefault(key, {"params": [], **self.rates(scale, decay)})
            group["params"].append(parameter)
        return [groups[key] for key in sorted(groups)]

    def rates(self, scale: float, decay: float) -> dict[str, float]:
        """Learning rate and weight decay, as torch's optimiser takes them, of a group with `scale` times `lr`."""
        return {"lr": self.lr * scale, "weight_decay": decay}

    def _scales(self, network: Network) -> dict[str, float]:
        """Learning rate of each parameter as a share of the head's."""
        scales = {name: 1.0 for name, _ in network.named_parameters()}
        backbone: Any = network.backbone
        depths: dict[str, int] = {}
        if self.layer_decay < 1:
            if not hasattr(backbone, "group_matcher"):
                raise UserError("optim.layer_decay: timm does not define the layers of this model. Use layer_decay=1.")
            depths = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
        deepest = max(depths.values(), default=0)
        for name, _ in backbone.named_parameters():
            decay = self.layer_decay ** (deepest + 1 - depths[name]) if depths else 1.0
            scales[f"backbone.{name}"] = self.backbone_lr_scale * decay
        for name, module in network.named_modules():
            if isinstance(module, NORMS):
                for parameter, _ in module.named_parameters(name, recurse=False):
                    scales[parameter] *= self.norm_lr_scale
        return scales


@dataclass
class Adam(Optim):
    """Adam (Kingma and Ba 2014), with weight decay as an L2 penalty."""

    implementation: ClassVar[Any] = torch.optim.Adam
    betas: Sequence[float] = (0.9, 0.999)

    def optimizer(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        return self.implementation(groups, betas=tuple(self.betas), fused=_supports_fused(groups, fused))


@dataclass
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017)."""

    implementation: ClassVar[Any] = torch.optim.AdamW


@dataclass
class SGD(Optim):
    """Stochastic gradient descent with momentum.

    Args:
        momentum: decay of the running mean of the gradients.
        nesterov: use Nesterov momentum.
        decoupled: make `lr` the length of a step along a constant gradient for any momentum, and `weight_decay` the
            share by which a step shrinks the weights for any learning rate, both at the peak of the schedule, so that
            each can be tuned alone (Page 2018). In torch's own definition momentum 0.9 makes steps ten times as long.
    """

    momentum: float = 0.9
    nesterov: bool = True
    decoupled: bool = False

    def rates(self, scale: float, decay: float) -> dict[str, float]:
        if not self.decoupled:
            return super().rates(scale, decay)
        rate = self.lr * scale
        return {"lr": rate * (1 - self.momentum), "weight_decay": decay / rate}

    def optimizer(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        nesterov = self.nesterov and self.momentum > 0
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=nesterov, fused=_supports_fused(groups, fused))


def _custom_schedule(
    build: Callable[..., LRScheduler], optimizer: torch.optim.Optimizer, steps: float, steps_per_epoch: float
) -> LRScheduler:
    lengths = {"steps": steps, "steps_per_epoch": steps_per_epoch}
    takes = set(inspect.signature(build).parameters) - set(getattr(build, "keywords", {}))
    whole = {name: int(count) if float(count).is_integer() else count for name, count in lengths.items()}
    schedule = build(optimizer, **{name: count for name, count in whole.items() if name in takes})
    if not isinstance(schedule, LRScheduler) or isinstance(schedule, ReduceLROnPlateau):
        raise UserError(
            f"optim.schedule: {type(schedule).__name__} is not a scheduler that follows the optimiser's steps. "
            "Use a class of torch.optim.lr_scheduler other than ReduceLROnPlateau, or a function that returns one."
        )
    return schedule


@dataclass
class Timm(Optim):
    """One of timm's optimisers.

    Args:
        name: any of `timm.optim.list_optimizers()`.
        options: further arguments of the optimiser.
    """

    name: str = "nadamw"
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name.lower() not in list_optimizers():
            close = nearest(self.name, map(str, list_optimizers()))
            raise UserError(f"optim.name={self.name}: timm has no such optimiser. {close}")

    def optimizer(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        try:
            return create_optimizer_v2(groups, opt=self.name, lr=self.lr, **(self.options or {}))
        except (TypeError, ValueError, AssertionError) as error:
            options = dict(self.options or {})
            raise UserError(f"timm cannot build optim.name={self.name} with {options}: {first_line(error)}") from error


def _supports_fused(groups: list[dict[str, Any]], fused: bool) -> bool | None:
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return True if fused and devices <= {"cpu", "cuda"} else None
