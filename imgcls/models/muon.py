"""Muon: steps along orthogonalised momentum for matrices and convolutions, SGD for everything else (Jordan 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imgcls.models.network import Network
from imgcls.models.optim import Optim

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan 2024: the steepest at 0 that keeps singular values near 1


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Near U V' of each matrix U S V', (…, rows, columns), by a Newton-Schulz iteration: singular values of 0.7 to 1.2.

    In bfloat16, where the device computes in it, as the iteration forgives rounding.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class MuonSGD(torch.optim.Optimizer):
    """Orthogonalised steps with decoupled weight decay for groups with `orthogonal`, Nesterov SGD for the others."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; `closure` computes the loss and its gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        rate, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        if not group["orthogonal"]:
            gradient = gradient.add(parameter, alpha=decay)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        direction = gradient.add(state["momentum_buffer"].mul_(momentum).add_(gradient), alpha=momentum)
        if group["orthogonal"]:
            rows = direction.flatten(1)
            # the same change of what a layer puts out, whatever its shape
            direction = orthogonalised(rows).view_as(direction) * max(1.0, rows.shape[0] / rows.shape[1]) ** 0.5
            parameter.mul_(1 - rate * decay)
        parameter.add_(direction, alpha=-rate)


@dataclass
class Muon(Optim):
    """Muon for the backbone's matrices and convolutions; Nesterov SGD for its norms and biases, and for the head.

    Args:
        momentum: of all.
        other_lr: the rate of SGD.
    """

    momentum: float = 0.6
    other_lr: float = 0.1

    def parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        groups = []
        for group in super().parameter_groups(network):
            kinds: dict[bool, list[Tensor]] = {True: [], False: []}
            for parameter in group["params"]:
                name = names[id(parameter)]
                kinds[name.startswith("backbone.") and network.dimensions[name] > 1].append(parameter)
            rates = {True: group["lr"], False: group["lr"] * self.other_lr / self.lr}
            groups += [
                {**group, "params": kinds[one], "lr": rates[one], "orthogonal": one} for one in kinds if kinds[one]
            ]
        return groups

    def optimizer(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        """MuonSGD."""
        return MuonSGD(groups, self.momentum)
