"""Reading `model.json`, in every released version of its format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.preprocessing import PAD_COLOUR

FORMAT_VERSION = 3
WEIGHTS, DESCRIPTION, CARD, ONNX = "model.safetensors", "model.json", "README.md", "model.onnx"


def read_description(folder: Path) -> dict[str, Any]:
    """The content of `model.json` in `folder`, upgraded to the newest format.

    Raises UserError if it is missing, damaged, or was written by a newer imgcls.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise UserError(f"{folder} holds no exported model (no {DESCRIPTION}).")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise UserError(f"{folder} has format {version}; this imgcls reads up to {FORMAT_VERSION}. Update imgcls.")
    for old in range(version, FORMAT_VERSION):
        description = UPGRADES[old](description)
    return description


def _upgrade_from_1(description: dict[str, Any]) -> dict[str, Any]:
    """Format 2 adds `parity`: how well the exported files agree with the trained network."""
    return {**description, "format_version": 2, "parity": {}}


def _upgrade_from_2(description: dict[str, Any]) -> dict[str, Any]:
    """Format 3 adds how images of other aspect ratios fit into the input: until then they were cropped."""
    preprocessing = {"fit": "crop", "pad_colour": list(PAD_COLOUR), **description["preprocessing"]}
    return {**description, "format_version": 3, "preprocessing": preprocessing}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _upgrade_from_1, 2: _upgrade_from_2}
"""Upgrades each version to the next; none is ever removed."""
