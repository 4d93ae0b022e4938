"""What the layers of a network are given and put out in one step, seen through hooks that stay for that step only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

RECTIFIERS = (nn.ReLU, nn.ReLU6)
WEIGHTED = (nn.Conv2d, nn.Linear)
ACTIVE = 0.01  # of a batch: a channel that is active for less counts as dead
TANH_FLAT, SIGMOID_LOW, SIGMOID_HIGH = 9.4999, -23.0, 16.99999  # SageMaker's: where the gradient is lost in float32


@dataclass(frozen=True)
class Seen:
    """What `Activations.end` found, still on the device."""

    variances: dict[str, Tensor]
    dead: dict[str, Tensor]
    saturated: dict[str, Tensor]
    input_mean: Tensor | None

    def read(self) -> dict[str, Any]:
        """Fields of an Observation; waits for the device."""
        variances = _numbers(self.variances)
        return {
            "output_variance": {name: value for name, value in variances.items() if math.isfinite(value)},
            "dead": _numbers(self.dead),
            "saturated": _numbers(self.saturated),
            "input_mean": float(self.input_mean) if self.input_mean is not None else None,
            "infinite": [f"input of {name}" for name, value in variances.items() if not math.isfinite(value)],
        }


def _numbers(values: dict[str, Tensor]) -> dict[str, float]:
    if not values:
        return {}
    together = torch.stack([value.float() for value in values.values()]).cpu().tolist()
    return {name: float(f"{value:.6g}") for name, value in zip(values, together, strict=True)}


class Activations:
    """Watches `network` until it has `end`ed. A compiled network is left alone: hooks would have it compiled anew."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self._variances: dict[str, Tensor] = {}
        self._dead: dict[str, Tensor] = {}
        self._saturated: dict[str, Tensor] = {}
        self._input_mean = images.detach().float().mean() if images.ndim == 4 else None
        self._hooks: list[Any] = []
        if getattr(network, "_compiled_call_impl", None) is not None:
            return
        for name, module in network.named_modules():
            if isinstance(module, WEIGHTED):
                self._hooks.append(module.register_forward_hook(self._given(name)))
            elif isinstance(module, RECTIFIERS):
                self._hooks.append(module.register_forward_hook(self._rectified(name)))
            elif isinstance(module, nn.Sigmoid | nn.Tanh):
                self._hooks.append(module.register_forward_hook(self._flat(name, isinstance(module, nn.Tanh))))

    def end(self) -> Seen:
        """Take the hooks away again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        return Seen(self._variances, self._dead, self._saturated, self._input_mean)

    def _given(self, name: str) -> Any:
        def look(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                self._variances[name] = given[0].detach().float().var()

        return look

    def _rectified(self, name: str) -> Any:
        def look(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                active = (output.detach() > 0).float()
                others = [axis for axis in range(active.ndim) if axis != (1 if active.ndim == 4 else active.ndim - 1)]
                self._dead[name] = (active.mean(others) < ACTIVE).float().mean()

        return look

    def _flat(self, name: str, tanh: bool) -> Any:
        def look(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                value = given[0].detach().float()
                flat = value.abs() > TANH_FLAT if tanh else (value < SIGMOID_LOW) | (value > SIGMOID_HIGH)
                self._saturated[name] = flat.float().mean()

        return look
