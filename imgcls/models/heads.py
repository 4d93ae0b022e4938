"""Heads, which map a backbone's features to one logit per class.

A head is a small description that builds a module when it is called with the sizes to connect. The description is part
of the portable model, which can therefore be rebuilt from `model.json` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from torch import nn

from imgcls.errors import UserError
from imgcls.models.choices import ACTIVATIONS, NORMS
from imgcls.models.memory import Neighbours, Prototypes
from imgcls.system.checks import check_value, choice
from imgcls.system.extras import import_plugins


class Head(Protocol):
    """Anything that builds a module from (N, in_features) features to (N, num_classes) logits."""

    def __call__(self, in_features: int, num_classes: int) -> nn.Module: ...

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `head_from_dict` rebuilds the head from, with its `kind`."""


HEADS: dict[str, Callable[..., Head]] = {}
"""Head classes by the `kind` in their plain values."""

T = TypeVar("T", bound=Callable[..., Head])


def register_head(kind: str) -> Callable[[T], T]:
    """A decorator for head classes whose `as_dict` has this `kind`, so that a portable model can be rebuilt."""

    def register(head: T) -> T:
        HEADS[kind] = head
        return head

    return register


@register_head("linear")
@dataclass(frozen=True)
class Linear:
    """One linear layer, after dropout."""

    dropout: float = 0.0

    def __call__(self, in_features: int, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Dropout(self.dropout), nn.Linear(in_features, num_classes))

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "linear", **asdict(self)}


@register_head("mlp")
@dataclass(frozen=True)
class Mlp:
    """Hidden layers of any widths, each followed by normalisation, activation and dropout, then a linear layer.

    `hidden=[1000, 100]` on a ResNet50 gives 2048→1000→100→classes.
    """

    hidden: Sequence[int] = (512,)
    activation: str = "relu"
    norm: str = "none"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", [int(width) for width in self.hidden])
        if any(width < 1 for width in self.hidden):
            raise UserError(f"model.head.hidden={list(self.hidden)}: widths must be at least 1.")
        check_value("model.head.activation", self.activation, choice(*ACTIVATIONS))
        check_value("model.head.norm", self.norm, choice(*NORMS))

    def __call__(self, in_features: int, num_classes: int) -> nn.Module:
        layers: list[nn.Module] = []
        norm, activation = getattr(nn, NORMS[self.norm]), getattr(nn, ACTIVATIONS[self.activation])
        for width in self.hidden:
            layers += [nn.Linear(in_features, width), norm(width), activation(), nn.Dropout(self.dropout)]
            in_features = width
        return nn.Sequential(*layers, nn.Linear(in_features, num_classes))

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "mlp", **asdict(self)}


@register_head("prototype")
@dataclass(frozen=True)
class Prototype:
    """The mean features of each class, see `imgcls.models.memory.Prototypes`; filled, not trained."""

    def __call__(self, in_features: int, num_classes: int) -> nn.Module:
        return Prototypes(in_features, num_classes)

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "prototype"}


@register_head("knn")
@dataclass(frozen=True)
class Knn:
    """The nearest training images of each class, see `imgcls.models.memory.Neighbours`; filled, not trained.

    Args:
        k: images of a class whose similarity counts.
        images: number of images of each class that are kept, of a head that is filled.
    """

    k: int = 5
    images: Sequence[int] | None = None

    def __call__(self, in_features: int, num_classes: int) -> nn.Module:
        return Neighbours(in_features, self.images or [0] * num_classes, self.k)

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "knn", **asdict(self)}


def head_from_dict(values: Mapping[str, Any]) -> Head:
    """Rebuild the head that `as_dict` described.

    Heads of other modules are found once these are imported or named in the environment: IMGCLS_PLUGINS=mine,other.
    Raises UserError for a kind that is not registered.
    """
    options = dict(values)
    kind = options.pop("kind")
    if kind not in HEADS:
        import_plugins()
    if kind not in HEADS:
        raise UserError(
            f"The model has a head of kind {kind!r}, which is not registered. "
            "Name the module that registers it: IMGCLS_PLUGINS=MODULE."
        )
    return HEADS[kind](**options)
