"""Several networks as one: the mean of their probabilities (Lakshminarayanan et al. 2017), with any runtime.

The ensemble is a `Network` like any other: copies of the backbone beside each other, or one that all members share,
and a head that holds the members' heads. Its outputs are the logarithms of the mean probabilities, so that whatever
applies a softmax to logits, or with several labels a sigmoid, gets the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from imgcls.models.heads import head_from_dict, register_head
from imgcls.models.network import Network, width_of


class Backbones(nn.Module):
    """Networks beside each other: (N, 3, H, W) images to the (N, K * F) features of all K."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_features = sum(width_of(member) for member in members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([member(images) for member in self.members], dim=1)


class MeanOfHeads(nn.Module):
    """The (N, C) logarithms of the mean of the members' probabilities, for (N, F) features that they share, or
    (N, K * F), a block for each of the K members.

    Args:
        members: each maps features to (N, C) logits.
        temperatures: of the members, by which their logits are divided.
        shared: whether all members use the same features.
        multilabel: whether an image can have several labels: then the outputs are the logits of the mean probabilities.
    """

    def __init__(
        self, members: Sequence[nn.Module], temperatures: Sequence[float], *, shared: bool, multilabel: bool
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.temperatures, self.shared, self.multilabel = tuple(temperatures), shared, multilabel

    def forward(self, features: Tensor) -> Tensor:
        count = len(self.members)
        blocks = [features] * count if self.shared else features.chunk(count, dim=1)
        logits = torch.stack(
            [
                member(block).float() / temperature
                for member, block, temperature in zip(self.members, blocks, self.temperatures, strict=True)
            ]
        )
        if not self.multilabel:
            return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(count)
        # log(mean(p)) - log(mean(1 - p)), without the rounding of probabilities near 0 or 1
        of_label, of_rest = (nn.functional.logsigmoid(sign * logits).logsumexp(dim=0) for sign in (1, -1))
        return of_label - of_rest


@register_head("ensemble")
@dataclass(frozen=True)
class EnsembleHead:
    """The heads of an ensemble, as `model.json` describes them; see `MeanOfHeads`."""

    member: Mapping[str, Any]
    """The head of each member."""
    temperatures: Sequence[float]
    shared: bool = False
    multilabel: bool = False

    def __call__(self, in_features: int, num_classes: int) -> nn.Module:
        count = len(self.temperatures)
        width = in_features if self.shared else in_features // count
        heads = [head_from_dict(self.member)(width, num_classes) for _ in range(count)]
        return MeanOfHeads(heads, self.temperatures, shared=self.shared, multilabel=self.multilabel)

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "ensemble", **asdict(self), "temperatures": list(self.temperatures)}


def ensemble_of(networks: Sequence[Network], temperatures: Sequence[float], *, multilabel: bool = False) -> Network:
    """One network whose probabilities are the mean of those of `networks`, each divided by its temperature.

    The networks have one architecture and, in evaluation mode, one `views`. Where their backbones have equal weights,
    as a frozen one has, the ensemble has it once and takes hardly longer than a single network.
    """
    first = networks[0]
    states = [network.backbone.state_dict() for network in networks]
    shared = all(torch.equal(value, state[name]) for state in states[1:] for name, value in states[0].items())
    head = EnsembleHead(first.architecture.head, [float(value) for value in temperatures], shared, multilabel)
    architecture = replace(first.architecture, head=head.as_dict(), backbones=1 if shared else len(networks))
    heads = MeanOfHeads([network.head for network in networks], head.temperatures, shared=shared, multilabel=multilabel)
    backbone = first.backbone if shared else Backbones([network.backbone for network in networks])
    return Network(backbone, heads, architecture).eval()
