"""The model card: what a portable model is, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(description: Mapping[str, Any]) -> str:
    """What the model is, how good it is and how to use it, in Markdown.

    Args:
        description: the content of `model.json`.
    """
    names = description["class_names"]
    shown = ", ".join(names[:20]) + (f", … ({len(names) - 20} more)" if len(names) > 20 else "")
    preprocessing, architecture = description["preprocessing"], description["architecture"]
    measured = "\n".join(f"| {name} | {value:.4f} |" for name, value in description["metrics"].items())
    return f"""# {architecture["name"]}, {len(names)} classes

An image classifier trained with imgcls {description["versions"]["imgcls"]}.

Classes: {shown}

| metric | value |
|---|---|
{measured}

`val/` metrics chose this model among the epochs of its training; `test/` metrics were measured once, at the end.

Pictures are turned upright and to RGB, their shorter side is resized to {preprocessing["resize"]} px
({preprocessing["interpolation"]}), the centre {preprocessing["image_size"]} px are cut out and normalised with mean
{preprocessing["mean"]} and standard deviation {preprocessing["std"]}.
{_checked(description["parity"])}
```python
from imgcls import portable

model = portable.load("path/of/this/folder")
model.top(["picture.jpg"])
```
"""


def _checked(parity: Mapping[str, Mapping[str, Any]]) -> str:
    files = {"safetensors": "`model.safetensors`", "onnx": "`model.onnx`"}
    lines = [
        f"{files[name]} was compared with the trained network on {values['pictures']} validation pictures: the same "
        f"likeliest class for {values['agreement']:.2%}, probabilities within {values['difference']:.1e}."
        for name, values in parity.items()
    ]
    return "\n" + "\n".join(lines) + "\n" if lines else ""
