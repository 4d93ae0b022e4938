"""Muon: orthogonalised momentum steps for matrices and convolutions, SGD for all other parameters (Jordan 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imgcls.models.network import Network
from imgcls.models.optim import Optim

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at 0 while keeping singular values near 1


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V' of each matrix U S V', (…, rows, columns), by a Newton-Schulz iteration.

    The singular values of the result are about 0.7 to 1.2. On CUDA in bfloat16, as the iteration tolerates rounding.
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
    """Orthogonalised steps for groups with `orthogonal`, Nesterov SGD for all others.

    Before such a step the weights decay by their share (decoupled weight decay), or with `fixed_norm` are scaled to the
    norm of an orthogonal matrix, the root of its rows.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, fixed_norm: bool = False) -> None:
        defaults = {"lr": 0.0, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False, "fixed_norm": fixed_norm}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure` computes the loss and its gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            directions = [self._direction(parameter, group) for parameter in parameters]
            if group["orthogonal"]:
                directions = _orthogonal(directions)
                if group["fixed_norm"]:
                    for parameter, norm in zip(parameters, torch._foreach_norm(parameters), strict=True):
                        parameter.mul_(len(parameter) ** 0.5 / norm)
                else:
                    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            if parameters:
                torch._foreach_add_(parameters, directions, alpha=-group["lr"])
        return loss

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov's step for one parameter, before the learning rate."""
        gradient, momentum = parameter.grad, group["momentum"]
        assert gradient is not None
        if not group["orthogonal"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        return gradient.add(state["momentum_buffer"].mul_(momentum).add_(gradient), alpha=momentum)


def _orthogonal(directions: list[Tensor]) -> list[Tensor]:
    """The orthogonalised directions, of which those of one size are computed together.

    Each is scaled so that it changes the output of its layer equally, whatever the shape of the layer.
    """
    places: dict[tuple[int, int], list[int]] = {}
    for place, direction in enumerate(directions):
        rows = len(direction)
        places.setdefault((rows, direction.numel() // rows), []).append(place)
    found = list(directions)
    for (rows, columns), same in places.items():
        batch = orthogonalise(torch.stack([directions[place].flatten(1) for place in same]))
        for place, matrix in zip(same, batch * max(1.0, rows / columns) ** 0.5, strict=True):
            found[place] = matrix.view_as(directions[place])
    return found


@dataclass
class Muon(Optim):
    """Muon for the backbone's matrices and convolutions; Nesterov SGD for its norms and biases, and for the head.

    Args:
        momentum: of both.
        other_lr: the learning rate of SGD.
        fixed_norm: keep the norm of each matrix, instead of its weight decay (airbench94_muon, Jordan 2024): the rate
            then is the angle of a step. For networks with norms, which the size of a matrix does not change.
    """

    momentum: float = 0.6
    other_lr: float = 0.1
    fixed_norm: bool = False

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
                {**group, "params": parameters, "lr": rates[orthogonal], "orthogonal": orthogonal}
                for orthogonal, parameters in kinds.items()
                if parameters
            ]
        return groups

    def optimizer(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        return MuonSGD(groups, self.momentum, self.fixed_norm)
