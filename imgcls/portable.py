"""The portable model: weights, architecture, class names and preprocessing in one folder.

It is read without Hydra, Lightning and the training data, and nothing in it is executed: safetensors and JSON.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import imgcls
from imgcls.errors import UserError
from imgcls.files import atomic_path, atomic_write_text
from imgcls.models.backbones import Network, network_from_architecture
from imgcls.pictures import open_picture
from imgcls.preprocessing import Preprocessing

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
WEIGHTS, DESCRIPTION, CARD, ONNX = "model.safetensors", "model.json", "README.md", "model.onnx"


@dataclass
class PortableModel:
    """A network with all that is needed to use it.

    Attributes:
        network: in evaluation mode, on the CPU until `to` moves it.
        preprocessing: from a picture to what the network takes.
        class_names: in the order of the scores.
        description: the content of `model.json`.
    """

    network: Network
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    description: dict[str, Any]

    def to(self, device: str | torch.device) -> PortableModel:
        """Move the network to `device`."""
        self.network.to(device)
        return self

    def predict(self, pictures: Sequence[Any], batch_size: int = 32) -> np.ndarray:
        """Probabilities of the classes, float32 (N, C).

        Args:
            pictures: paths, bytes, Pillow images or uint8 arrays (H, W, 3).
            batch_size: pictures that go through the network together.

        Raises:
            BadPicture: one of them is no picture.
        """
        parts = [np.empty((0, len(self.class_names)), dtype=np.float32)]
        for start in range(0, len(pictures), batch_size):
            some = pictures[start : start + batch_size]
            pixels = np.stack([self.preprocessing.pixels(open_picture(picture)) for picture in some])
            parts.append(self.probabilities(pixels))
        return np.concatenate(parts)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """float32 (N, C) for uint8 (N, S, S, 3) pixels as `preprocessing.pixels` gives them."""
        device = next(self.network.parameters()).device
        images = torch.from_numpy(self.preprocessing.normalise(pixels)).to(device)
        with torch.inference_mode():
            return self.network(images).float().softmax(dim=1).cpu().numpy()

    def top(self, pictures: Sequence[Any], top_k: int = 5) -> list[list[tuple[str, float]]]:
        """The `top_k` likeliest classes of each picture, each as (name, probability)."""
        probabilities = self.predict(pictures)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        return [
            [(self.class_names[index], float(row[index])) for index in indices]
            for row, indices in zip(probabilities, order, strict=True)
        ]


def export(
    network: Network,
    *,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    metrics: Mapping[str, float],
    folder: Path,
    onnx: bool = True,
) -> None:
    """Write the portable model into `folder`; `model.json` comes last, so that a model that has it is whole.

    Args:
        network: its weights are written in float32.
        preprocessing: what evaluation did to the pictures.
        class_names: in the order of the scores.
        metrics: the numbers that the card tells.
        folder: made if it is not there.
        onnx: also write `model.onnx`, where the extra `onnx` is installed.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    floats = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(floats, temporary, metadata={"format": "pt"})
    if onnx:
        export_onnx(network, preprocessing, folder / ONNX)
    description = {
        "format_version": FORMAT_VERSION,
        "architecture": network.architecture,
        "class_names": list(class_names),
        "preprocessing": preprocessing.as_dict(),
        "metrics": dict(metrics),
        "versions": {
            "imgcls": imgcls.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "timm")},
            "python": platform.python_version(),
        },
    }
    atomic_write_text(folder / CARD, model_card(description))
    atomic_write_text(folder / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def load(folder: str | Path) -> PortableModel:
    """The portable model in `folder`. Raises UserError where there is none, or one of a newer format."""
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} holds no exported model (no {DESCRIPTION}).")
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / DESCRIPTION} is damaged: {error}") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(f"{folder} has format {version}; this imgcls reads up to {FORMAT_VERSION}. Update it.")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network = network_from_architecture(description["architecture"])
        preprocessing, names = Preprocessing.from_dict(description["preprocessing"]), tuple(description["class_names"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / DESCRIPTION} is damaged: {error}.") from error
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {str(error).splitlines()[0]}") from error
    return PortableModel(network.eval(), preprocessing, names, description)


@dataclass(frozen=True)
class Parity:
    """How well the exported files agree with each other on some pictures."""

    pictures: int
    difference: float
    """The largest difference between two probabilities."""
    agreement: float
    """The share of the pictures for which the likeliest class is the same."""


def check(folder: str | Path, pixels: np.ndarray, network: Network | None = None) -> dict[str, Parity]:
    """Compare what was exported with what it came from.

    Args:
        folder: of the portable model.
        pixels: uint8 (N, S, S, 3) as `Preprocessing.pixels` gives them.
        network: what was exported; with it the weights read back are compared (`safetensors`).

    Returns:
        For `safetensors` (with a network) and `onnx` (with a `model.onnx` and onnxruntime): how well they agree.
    """
    model, found = load(folder), {}
    reference = model.probabilities(pixels)
    if network is not None:
        training = network.training
        own = PortableModel(network.eval(), model.preprocessing, model.class_names, model.description)
        found["safetensors"] = compare(own.probabilities(pixels), reference)
        network.train(training)
    file = Path(folder) / ONNX
    if file.is_file() and importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        scores = session.run(["scores"], {"images": model.preprocessing.normalise(pixels)})[0]
        found["onnx"] = compare(reference, torch.from_numpy(scores).softmax(dim=1).numpy())
    return found


def compare(first: np.ndarray, second: np.ndarray) -> Parity:
    """Compare two tables of probabilities, float32 (N, C).

    >>> compare(np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.25, 0.75]]))
    Parity(pictures=2, difference=0.25, agreement=0.5)
    """
    agreement = float((first.argmax(axis=1) == second.argmax(axis=1)).mean())
    return Parity(len(first), float(np.abs(first - second).max()), agreement)


def export_onnx(network: Network, preprocessing: Preprocessing, file: Path) -> bool:
    """Write `file` (input `images`, float32 (N, 3, S, S) normalised; output `scores`); False where onnx is missing."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        return False
    side = preprocessing.image_size
    frozen = network_from_architecture(network.architecture)
    frozen.load_state_dict({name: value.float().cpu() for name, value in network.state_dict().items()}, strict=True)
    frozen.eval()
    levels = {name: logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for logger in levels.values():
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), atomic_path(file) as temporary:
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            frozen,
            (torch.zeros(2, 3, side, side),),
            input_names=["images"],
            output_names=["scores"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(temporary))
    return True


def model_card(description: Mapping[str, Any]) -> str:
    """What the model is, how good it is and how to use it, in Markdown."""
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

```python
from imgcls import portable

model = portable.load("path/of/this/folder")
model.top(["picture.jpg"])
```
"""
