"""What the layers of a network are given and put out in one step, seen through hooks that stay for that step only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imgcls.debug.observations import QUANTILES

RECTIFIERS = (nn.ReLU, nn.ReLU6)
WEIGHTED = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Flat:
    """Inputs beyond which an activation is flat, so that its gradient is lost in float32; SageMaker's values."""

    tanh: tuple[float, float] = (-9.4999, 9.4999)
    sigmoid: tuple[float, float] = (-23.0, 16.99999)


@dataclass(frozen=True)
class Seen:
    """What `Activations.end` found, still on the device."""

    variances: dict[str, Tensor]
    active: dict[str, Tensor]
    unsaturated: dict[str, Tensor]
    input_mean: Tensor | None

    def read(self) -> dict[str, Any]:
        """Fields of an Observation; waits for the device."""
        variances = _numbers(self.variances)
        return {
            "input_variance": {name: value for name, value in variances.items() if math.isfinite(value)},
            "active": _spreads(self.active),
            "unsaturated": _spreads(self.unsaturated),
            "input_mean": float(self.input_mean) if self.input_mean is not None else None,
            "infinite": [f"input of {name}" for name, value in variances.items() if not math.isfinite(value)],
        }


def _numbers(values: dict[str, Tensor]) -> dict[str, float]:
    if not values:
        return {}
    together = torch.stack([value.float() for value in values.values()]).cpu().tolist()
    return {name: float(f"{value:.6g}") for name, value in zip(values, together, strict=True)}


def _spreads(values: dict[str, Tensor]) -> dict[str, Sequence[float]]:
    if not values:
        return {}
    together = torch.stack(list(values.values())).cpu().tolist()
    return {name: [round(one, 5) for one in row] for name, row in zip(values, together, strict=True)}


class Activations:
    """Watches `network` until it has `end`ed. A compiled network is left alone: hooks would have it compiled anew.

    Args:
        network: of any layers.
        images: its normalised input, float (N, 3, H, W); features of a frozen backbone tell nothing of pictures.
        flat: where sigmoid and tanh count as saturated.
    """

    def __init__(self, network: nn.Module, images: Tensor, flat: Flat | None = None) -> None:
        self._variances: dict[str, Tensor] = {}
        self._active: dict[str, Tensor] = {}
        self._unsaturated: dict[str, Tensor] = {}
        self._flat = flat or Flat()
        self._input_mean = images.detach().float().mean() if images.ndim == 4 else None
        self._hooks: list[Any] = []
        if any(getattr(module, "_compiled_call_impl", None) is not None for module in network.modules()):
            return
        for name, module in network.named_modules():
            if isinstance(module, WEIGHTED):
                self._hooks.append(module.register_forward_hook(self._given(name)))
            elif isinstance(module, RECTIFIERS):
                self._hooks.append(module.register_forward_hook(self._rectified(name)))
            elif isinstance(module, nn.Sigmoid | nn.Tanh):
                limits = self._flat.tanh if isinstance(module, nn.Tanh) else self._flat.sigmoid
                self._hooks.append(module.register_forward_hook(self._saturating(name, limits)))

    def end(self) -> Seen:
        """Take the hooks away again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        return Seen(self._variances, self._active, self._unsaturated, self._input_mean)

    def _given(self, name: str) -> Any:
        def look(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                self._variances[name] = given[0].detach().float().var()

        return look

    def _rectified(self, name: str) -> Any:
        def look(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                self._active[name] = _by_channel(output.detach() > 0)

        return look

    def _saturating(self, name: str, limits: tuple[float, float]) -> Any:
        def look(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                value = given[0].detach()
                self._unsaturated[name] = _by_channel((value > limits[0]) & (value < limits[1]))

        return look


def _by_channel(holds: Tensor) -> Tensor:
    """float32 (QUANTILES,) over the channels: the share of the batch for which `holds`, bool (N, C, H, W) or (…, C)."""
    channel = 1 if holds.ndim == 4 else holds.ndim - 1
    shares = holds.float().mean([axis for axis in range(holds.ndim) if axis != channel])
    return torch.quantile(shares, torch.linspace(0, 1, QUANTILES, device=shares.device))
