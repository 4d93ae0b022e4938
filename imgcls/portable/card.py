"""The model card of a portable model, in Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from imgcls.portable.conformal import ClassSets
from imgcls.portable.novelty import Novelty
from imgcls.preprocessing import sides


def model_card(description: Mapping[str, Any]) -> str:
    """What the model is, how good it is and how to use it; `description` is the content of `model.json`."""
    names, parity = description["class_names"], description["parity"]
    class_list = ", ".join(_literal(name) for name in names[:20])
    class_list += f", … ({len(names) - 20} more)" if len(names) > 20 else ""
    preprocessing, architecture = description["preprocessing"], description["architecture"]
    metrics = "\n".join(_metric_rows(description["metrics"]))
    return f"""# {architecture["name"]}, {len(names)} classes

An image classifier trained with imgcls {description["versions"]["imgcls"]}.

Classes: {class_list}

| metric | value | 95 % interval |
|---|---|---|
{metrics}

{_origin_of_metrics(description.get("added", {}))}

Images are rotated upright and converted to RGB, {_fit(preprocessing)}, and normalised with mean
{preprocessing["mean"]} and standard deviation {preprocessing["std"]}.
{_calibration_section(description.get("calibration", {}))}{_doubt_section(description)}{_parity_section(parity)}
```python
from imgcls import portable

model = portable.load("path/to/this/folder")
model.top(["picture.jpg"])
```
"""


def _fit(preprocessing: Mapping[str, Any]) -> str:
    """How images become the model's input, as a part of a sentence."""
    height, width = sides(preprocessing["image_size"])
    size = f"{height} px square" if height == width else f"{height} x {width} px rectangle (height x width)"
    how = {
        "crop": f"their shorter side resized to {preprocessing['resize']} px, and cut to the central {size}",
        "pad": f"resized to fit into a {size} with a border of the colour {preprocessing['pad_colour']}",
        "squash": f"resized to a {size} whatever their aspect ratio",
    }
    return f"{how[preprocessing['fit']]} ({preprocessing['interpolation']})"


def _origin_of_metrics(added: Mapping[str, int]) -> str:
    if not added:
        selected = "The `val/` metrics selected this epoch of the training"
        return f"{selected}; the `test/` metrics were measured once, at the end."
    classes = ", ".join(f"{_literal(name)} ({count} image{'s' * (count != 1)})" for name, count in added.items())
    return (
        f"Classes that were added after the training: {classes}. The model was not tested with them, and its "
        "temperature is that of the others."
    )


def _metric_rows(metrics: Mapping[str, float]) -> Iterator[str]:
    for name, value in metrics.items():
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        if low is not None and high is not None:
            yield f"| {name} | {value:.4f} | {low:.4f} to {high:.4f} |"
        elif name.rpartition("_")[0] not in metrics or not name.endswith(("_low", "_high")):
            yield f"| {name} | {value:.4f} | |"


def _literal(text: str) -> str:
    """`text` such that Markdown shows it as it is, on one line and without HTML of its own."""
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _calibration_section(calibration: Mapping[str, Any]) -> str:
    if not calibration:
        return ""
    rows = [
        f"| {split}/{name} | {before:.4f} | {after:.4f} |"
        for split, values in calibration["effect"].items()
        for name, (before, after) in values.items()
    ]
    head = ["| metric | without | with temperature |", "|---|---|---|"]
    table = "".join(f"\n{line}" for line in [*head, *rows]) if rows else ""
    return f"""
The logits are divided by the temperature {calibration["temperature"]:.4g}, fitted on {calibration["images"]} validation
images, so that the confidence can be believed: the model's probabilities include it, the `loss` and `ece` above do not.
{table}
"""


def _doubt_section(description: Mapping[str, Any]) -> str:
    """The sets of classes and the unknown images, of a model that has them."""
    sets, novelty = description.get("sets"), description.get("novelty")
    lines = [str(ClassSets.from_dict(sets))] if sets else []
    lines += [str(Novelty.from_dict(novelty, np.empty((0, 0))))] if novelty else []
    return "".join(f"\n{line}\n" for line in lines)


def _parity_section(parity: Mapping[str, Mapping[str, Any]]) -> str:
    files = {"safetensors": "`model.safetensors`", "onnx": "`model.onnx`"}
    lines = [
        f"{files[name]} was compared with the trained network on {values['pictures']} validation images: the same most "
        f"likely class for {values['agreement']:.2%}, probabilities within {values['difference']:.1e}."
        for name, values in parity.items()
    ]
    return "\n" + "\n".join(lines) + "\n" if lines else ""
