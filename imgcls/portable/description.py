"""Reading `model.json`, in every released version of its format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.images.preprocessing import PAD_COLOUR

FORMAT_VERSION = 5
WEIGHTS, DESCRIPTION, CARD, ONNX = "model.safetensors", "model.json", "README.md", "model.onnx"
NOVELTY = "novelty.safetensors"


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
    """Format 3 adds how images of other aspect ratios fit into the input, and the thresholds of several labels."""
    preprocessing = {"fit": "crop", "pad_colour": list(PAD_COLOUR), **description["preprocessing"]}
    return {**description, "format_version": 3, "preprocessing": preprocessing, "thresholds": None}


def _upgrade_from_3(description: dict[str, Any]) -> dict[str, Any]:
    """Format 4 adds `calibration`: the temperature of the logits, and its effect; empty: the network's own logits."""
    return {**description, "format_version": 4, "calibration": {}}


def _upgrade_from_4(description: dict[str, Any]) -> dict[str, Any]:
    """Format 5 adds, where there are any, `sets` of classes with a given coverage, and the `novelty` of images."""
    return {**description, "format_version": 5}


def temperature_of(description: dict[str, Any]) -> float:
    """By what the network's logits are divided. Raises ValueError if the description has no such number."""
    temperature = description["calibration"].get("temperature", 1.0)
    if not isinstance(temperature, int | float) or isinstance(temperature, bool) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature!r}")
    return float(temperature)


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _upgrade_from_1,
    2: _upgrade_from_2,
    3: _upgrade_from_3,
    4: _upgrade_from_4,
}
"""Upgrades each version to the next; none is ever removed."""
