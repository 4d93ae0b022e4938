"""The names that timm has for the weights of a network with a linear head; imported without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

CLASSIFIER = "timm_classifier"
"""The entry in the metadata of a safetensors file whose tensors have timm's names: the name of its last layer."""
BACKBONE, HEAD = "backbone.", "head.1."

T = TypeVar("T")


def timm_name(name: str, classifier: str) -> str:
    """timm's name of a tensor.

    >>> timm_name("backbone.conv1.weight", "fc"), timm_name("head.1.bias", "fc")
    ('conv1.weight', 'fc.bias')
    """
    return f"{classifier}.{name.removeprefix(HEAD)}" if name.startswith(HEAD) else name.removeprefix(BACKBONE)


def with_own_names(tensors: Mapping[str, T], metadata: Mapping[str, str] | None) -> dict[str, T]:
    """The tensors of a safetensors file with the names that imgcls has for them, where they have timm's."""
    classifier = (metadata or {}).get(CLASSIFIER)
    if classifier is None:
        return dict(tensors)
    last = f"{classifier}."
    return {
        f"{HEAD}{name.removeprefix(last)}" if name.startswith(last) else f"{BACKBONE}{name}": value
        for name, value in tensors.items()
    }
