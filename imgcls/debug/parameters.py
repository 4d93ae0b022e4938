"""Sizes of gradients and updates of all trained parameters, computed together on their device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterStatistics:
    """The result of a ParameterProbe, still on the device."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    weights: tuple[int, ...]
    """Indices of the layers' weights. Norms and biases may be zero, and a bias before a norm gets no gradient."""
    values: Tensor
    """(7, P): sum, norm, maximum and number of non-zeros of the absolute gradients; maximum and number of non-zeros of
    the absolute weights; maximum of the absolute changes."""

    def read(self) -> dict[str, Any]:
        """Fields of an Observation; waits for the device."""
        counts = torch.tensor(self.counts, dtype=torch.float64)
        total, norm, largest, nonzero, weight, weight_nonzero, change = self.values.double().cpu()
        spread = (norm**2 / counts - (total / counts) ** 2).clamp(min=0).sqrt()

        def by_layer(numbers: Tensor) -> dict[str, float]:
            return {self.names[index]: float(f"{float(numbers[index]):.6g}") for index in self.weights}

        def tensors(kind: str, mask: Tensor) -> list[str]:
            return [f"{kind} of {self.names[index]}" for index in mask.nonzero().flatten().tolist()]

        return {
            "gradient_size": by_layer(total / counts),
            "gradient_spread": by_layer(spread),
            "gradient_zeros": by_layer(1 - nonzero / counts),
            "weight_zeros": by_layer(1 - weight_nonzero / counts),
            "weight_size": by_layer(weight),
            "update_ratio": {name: ratio for name, ratio in by_layer(change / weight).items() if math.isfinite(ratio)},
            "infinite": [*tensors("gradient", ~largest.isfinite()), *tensors("weight", ~weight.isfinite())],
            "nan": [*tensors("gradient", largest.isnan()), *tensors("weight", weight.isnan())],
        }


class ParameterProbe:
    """Measures the gradients when it is made, before the optimiser's step, and what the step changed when it `end`s.

    Parameters without a gradient (frozen ones) are left out.
    """

    def __init__(self, network: nn.Module) -> None:
        trained = {name: parameter for name, parameter in network.named_parameters() if parameter.grad is not None}
        self.names, self.parameters = tuple(trained), list(trained.values())
        gradients: list[Any] = [parameter.grad for parameter in self.parameters]
        with torch.no_grad():
            self._before = [parameter.detach().clone() for parameter in self.parameters]
            self._rows = [
                torch.stack(torch._foreach_norm(gradients, 1)),
                torch.stack(torch._foreach_norm(gradients, 2)),
                torch.stack(torch._foreach_norm(gradients, float("inf"))),
                torch.stack([gradient.count_nonzero() for gradient in gradients]),
                torch.stack(torch._foreach_norm(self._before, float("inf"))),
                torch.stack([weight.count_nonzero() for weight in self._before]),
            ] if gradients else []  # fmt: skip

    def end(self) -> ParameterStatistics:
        """The statistics, after the step."""
        if not self.names:
            return ParameterStatistics((), (), (), torch.zeros(7, 0))
        with torch.no_grad():
            changes = torch._foreach_sub([parameter.detach() for parameter in self.parameters], self._before)
            rows = [*self._rows, torch.stack(torch._foreach_norm(changes, float("inf")))]
            values = torch.stack([row.float() for row in rows])
        counts = tuple(parameter.numel() for parameter in self.parameters)
        weights = tuple(index for index, parameter in enumerate(self.parameters) if parameter.ndim > 1)
        return ParameterStatistics(self.names, counts, weights, values)
