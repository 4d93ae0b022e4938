"""The portable model: weights, architecture, class names and preprocessing in one folder.

It loads without Hydra, Lightning and the training data, with ONNX Runtime even without torch, and holds nothing that
is executed: safetensors, ONNX and JSON. May be imported by `serve`, `report`, `training` and the commands; imports
`models`, `images` and `system`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgcls.portable.description import CARD, DESCRIPTION, FORMAT_VERSION, NOVELTY, ONNX, WEIGHTS
from imgcls.portable.model import PortableModel, load
from imgcls.portable.parity import Parity, compare
from imgcls.portable.predictions import Prediction, predict_folder

if TYPE_CHECKING:
    from imgcls.portable.exporter import check, export

__all__ = [
    "CARD",
    "DESCRIPTION",
    "FORMAT_VERSION",
    "NOVELTY",
    "ONNX",
    "WEIGHTS",
    "Parity",
    "PortableModel",
    "Prediction",
    "check",
    "compare",
    "export",
    "load",
    "predict_folder",
]


def __getattr__(name: str) -> Any:
    """Import `check` and `export` on demand: writing a model needs torch, reading one does not."""
    if name not in ("check", "export"):
        raise AttributeError(f"module 'imgcls.portable' has no attribute {name!r}")
    from imgcls.portable import exporter

    return getattr(exporter, name)
