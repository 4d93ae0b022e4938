"""Statistics of the inputs and outputs of a network's layers in one step, from hooks that exist only for that step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from imgcls.debug.observations import QUANTILES
from imgcls.debug.tensor_rules import SaturatedActivation

RECTIFIERS = (nn.ReLU, nn.ReLU6)
WEIGHTED = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class ActivationStatistics:
    """The result of an ActivationProbe, still on the device."""

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
    numbers = torch.stack([value.float() for value in values.values()]).cpu().tolist()
    return {name: float(f"{number:.6g}") for name, number in zip(values, numbers, strict=True)}


def _spreads(values: dict[str, Tensor]) -> dict[str, Sequence[float]]:
    if not values:
        return {}
    rows = torch.stack(list(values.values())).cpu().tolist()
    return {name: [round(value, 5) for value in row] for name, row in zip(values, rows, strict=True)}


class ActivationProbe:
    """Measures the layers of `network` until `end`. A compiled network is skipped: hooks would make it compile again.

    Args:
        network: any network.
        images: its normalised input, float (N, 3, H, W). The features of a frozen backbone have no `input_mean`.
        saturation: the rule whose limits decide where sigmoid and tanh count as saturated.
    """

    def __init__(self, network: nn.Module, images: Tensor, saturation: SaturatedActivation) -> None:
        self._variances: dict[str, Tensor] = {}
        self._active: dict[str, Tensor] = {}
        self._unsaturated: dict[str, Tensor] = {}
        self._input_mean = images.detach().float().mean() if images.ndim == 4 else None
        self._hooks: list[Any] = []
        if any(getattr(module, "_compiled_call_impl", None) is not None for module in network.modules()):
            return
        tanh = saturation.threshold_tanh_min, saturation.threshold_tanh_max
        sigmoid = saturation.threshold_sigmoid_min, saturation.threshold_sigmoid_max
        for name, module in network.named_modules():
            if isinstance(module, WEIGHTED):
                self._measure(module, self._variances, name, lambda given, output: given.float().var())
            elif isinstance(module, RECTIFIERS):
                self._measure(module, self._active, name, lambda given, output: _by_channel(output > 0))
            elif isinstance(module, nn.Sigmoid | nn.Tanh):
                inside = partial(_inside, limits=tanh if isinstance(module, nn.Tanh) else sigmoid)
                self._measure(module, self._unsaturated, name, inside)

    def end(self) -> ActivationStatistics:
        """Remove the hooks and return the statistics."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        return ActivationStatistics(self._variances, self._active, self._unsaturated, self._input_mean)

    def _measure(
        self, module: nn.Module, results: dict[str, Tensor], name: str, statistic: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                results[name] = statistic(given[0].detach(), output.detach())

        self._hooks.append(module.register_forward_hook(hook))


def _inside(given: Tensor, output: Tensor, limits: tuple[float, float]) -> Tensor:
    return _by_channel((given > limits[0]) & (given < limits[1]))


def _by_channel(condition: Tensor) -> Tensor:
    """float32 (QUANTILES,) over the channels: the share of the batch with `condition`, bool (N, C, H, W) or (…, C)."""
    channel = 1 if condition.ndim == 4 else condition.ndim - 1
    shares = condition.float().mean([axis for axis in range(condition.ndim) if axis != channel])
    return torch.quantile(shares, torch.linspace(0, 1, QUANTILES, device=shares.device))
