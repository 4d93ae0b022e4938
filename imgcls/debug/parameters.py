"""Sizes of gradients and updates of all trained parameters, computed together on their device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """What `Parameters.end` computed, still on the device."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    matrices: tuple[int, ...]
    """Places of the weights of layers. Norms and biases may be zero, and a bias before a norm gets no gradient."""
    values: Tensor
    """(7, P): sums of absolute gradients, their norms, largest ones and non-zeros; largest weights, their non-zeros,
    and largest changes."""

    def read(self) -> dict[str, Any]:
        """Fields of an Observation; waits for the device."""
        values = self.values.double().cpu()
        counts = torch.tensor(self.counts, dtype=torch.float64)
        total, norm, largest, nonzero, weight, weight_nonzero, change = values
        spread = (norm**2 / counts - (total / counts) ** 2).clamp(min=0).sqrt()

        def named(numbers: Tensor) -> dict[str, float]:
            return {self.names[place]: float(f"{float(numbers[place]):.6g}") for place in self.matrices}

        def those(of: str, which: Tensor) -> list[str]:
            return [f"{of} of {self.names[place]}" for place in which.nonzero().flatten().tolist()]

        return {
            "gradient_size": named(total / counts),
            "gradient_spread": named(spread),
            "gradient_zeros": named(1 - nonzero / counts),
            "weight_zeros": named(1 - weight_nonzero / counts),
            "weight_size": named(weight),
            "update_ratio": {name: ratio for name, ratio in named(change / weight).items() if math.isfinite(ratio)},
            "infinite": [*those("gradient", ~largest.isfinite()), *those("weight", ~weight.isfinite())],
            "nan": [*those("gradient", largest.isnan()), *those("weight", weight.isnan())],
        }


class Parameters:
    """Looks at the gradients now, before the optimiser's step, and at what the step changed when it has `end`ed.

    Parameters without a gradient (frozen ones) are left out.
    """

    def __init__(self, network: nn.Module) -> None:
        trained = {name: one for name, one in network.named_parameters() if one.grad is not None}
        self.names, self.parameters = tuple(trained), list(trained.values())
        gradients: list[Any] = [one.grad for one in self.parameters]
        with torch.no_grad():
            self._before = [one.detach().clone() for one in self.parameters]
            self._rows = [
                torch.stack(torch._foreach_norm(gradients, 1)),
                torch.stack(torch._foreach_norm(gradients, 2)),
                torch.stack(torch._foreach_norm(gradients, float("inf"))),
                torch.stack([gradient.count_nonzero() for gradient in gradients]),
                torch.stack(torch._foreach_norm(self._before, float("inf"))),
                torch.stack([one.count_nonzero() for one in self._before]),
            ] if gradients else []  # fmt: skip

    def end(self) -> Sizes:
        """After the step."""
        if not self.names:
            return Sizes((), (), (), torch.zeros(7, 0))
        with torch.no_grad():
            changes = torch._foreach_sub([one.detach() for one in self.parameters], self._before)
            rows = [*self._rows, torch.stack(torch._foreach_norm(changes, float("inf")))]
            values = torch.stack([row.float() for row in rows])
        counts = tuple(one.numel() for one in self.parameters)
        matrices = tuple(place for place, one in enumerate(self.parameters) if one.ndim > 1)
        return Sizes(self.names, counts, matrices, values)
