"""How a network is built, as plain values: what `model.json` keeps of it. Read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from imgcls.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """What `imgcls.models.backbones.network_from_architecture` rebuilds a network from.

    >>> Architecture.from_dict({"name": "resnet18", "num_classes": 3}).stem
    'standard'
    """

    name: str
    """Of the timm model, without the tag of its weights."""
    num_classes: int
    """C."""
    stem: str = "standard"
    """'standard', or 'small' without the early down-sampling."""
    head: Mapping[str, Any] = field(default_factory=lambda: {"kind": "linear"})
    """What `imgcls.models.heads.head_from_dict` rebuilds the head from."""
    drop_rate: float = 0.0
    """Dropout before the head."""
    drop_path_rate: float = 0.0
    """Stochastic depth."""
    image_size: int | None = None
    """Side of the pictures, px; for backbones that are built for one size."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the timm model."""
    views: str = "one"
    """How evaluation looks at a picture, see `imgcls.models.views`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """What `as_dict` gave, as read back from JSON; what earlier versions did not write takes its default.

        Raises UserError for values that this version does not know, TypeError where name or num_classes are missing.
        """
        unknown = sorted(set(values) - {known.name for known in fields(cls)})
        if unknown:
            raise UserError(
                f"This model's architecture has {unknown[0]!r}, which this version of imgcls does not know. Update it."
            )
        return cls(**values)
