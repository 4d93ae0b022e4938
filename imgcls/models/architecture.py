"""The description of a network that `model.json` stores: plain values, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from imgcls.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """The arguments that `imgcls.models.backbones.network_from_architecture` rebuilds a network from.

    >>> Architecture.from_dict({"name": "resnet18", "num_classes": 3}).stem
    'standard'
    """

    name: str
    """Name of the timm model, without the tag of its weights."""
    num_classes: int
    """Number of classes, C."""
    stem: str = "standard"
    """'standard', or 'small': without the early downsampling, which leaves too little of small images."""
    head: Mapping[str, Any] = field(default_factory=lambda: {"kind": "linear"})
    """The values that `imgcls.models.heads.head_from_dict` rebuilds the head from."""
    drop_rate: float = 0.0
    """Dropout rate before the head."""
    drop_path_rate: float = 0.0
    """Rate of stochastic depth, where the backbone supports it."""
    image_size: int | None = None
    """Side of the images, px; for backbones that are built for one size."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the timm model."""
    views: str = "one"
    """Views of each image that evaluation averages over, see `imgcls.models.views`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Rebuild from the JSON of `as_dict`; fields that earlier versions did not write take their defaults.

        Raises UserError for fields that this version does not have, TypeError if name or num_classes is missing.
        """
        if unknown := sorted(set(values) - {entry.name for entry in fields(cls)}):
            raise UserError(
                f"The model's architecture has {unknown[0]!r}, which this version of imgcls does not support. "
                "Update imgcls."
            )
        return cls(**values)
