"""Writing a portable model, and checking the files against the trained network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import imgcls
from imgcls.errors import UserError
from imgcls.models.architecture import Architecture
from imgcls.models.backbones import network_from_architecture
from imgcls.models.memory import Memory
from imgcls.models.network import Network
from imgcls.portable.calibration import Calibration
from imgcls.portable.card import model_card
from imgcls.portable.conformal import ClassSets
from imgcls.portable.description import CARD, DESCRIPTION, FORMAT_VERSION, ONNX, WEIGHTS, temperature_of
from imgcls.portable.engines import OnnxEngine, read_network
from imgcls.portable.memory_onnx import FEATURES, SCORES, write_with_head
from imgcls.portable.model import load, softmax
from imgcls.portable.parity import TOLERANCE, Parity, compare
from imgcls.preprocessing import Preprocessing
from imgcls.system.files import atomic_folder, atomic_path, atomic_write_text

log = logging.getLogger(__name__)

BATCH_SIZE = 8  # images that go through a network at once in a check


def export(
    network: Network,
    *,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    metrics: Mapping[str, float],
    folder: Path,
    onnx: bool = True,
    thresholds: Sequence[float] | None = None,
    pixels: np.ndarray | None = None,
    calibration: Calibration | None = None,
    origin: Mapping[str, str] | None = None,
    sets: ClassSets | None = None,
) -> dict[str, Parity]:
    """Write the portable model beside `folder`, check it, and put it in its place whole.

    Args:
        network: its weights are written in float32.
        preprocessing: what evaluation did to the images.
        class_names: in the order of the logits.
        metrics: for the card and `model.json`.
        folder: replaced, or created if missing.
        onnx: also write `model.onnx` if the extra `onnx` is installed.
        thresholds: of the classes, (C,), where an image can have several; None: each image has one class.
        pixels: uint8 (N, S, S, 3), real images on which the files are compared with the network.
        calibration: the temperature of the logits, and its effect; None: 1.
        origin: the `run`, its `commit` and when it was `trained`, for `model.json`.
        sets: of classes with a wished coverage; None: the model has none.

    Returns:
        How well the files agree with the network, see `check`; empty without images.

    Raises:
        UserError: the files disagree with the network. A model that was there before stays.
    """
    with atomic_folder(folder) as partial:
        return _write(
            network, preprocessing, class_names, metrics, partial, onnx, thresholds, pixels, calibration, origin, sets
        )


def _write(
    network: Network,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    metrics: Mapping[str, float],
    folder: Path,
    onnx: bool,
    thresholds: Sequence[float] | None,
    pixels: np.ndarray | None,
    calibration: Calibration | None,
    origin: Mapping[str, str] | None,
    sets: ClassSets | None,
) -> dict[str, Parity]:
    """`export` into an empty folder."""
    write_weights(network, class_names, folder / WEIGHTS)
    temperature = calibration.temperature if calibration is not None else 1.0
    if onnx:
        export_onnx(network, preprocessing, folder / ONNX, temperature)
    parities = (
        _verify(folder, network, preprocessing, pixels, temperature) if pixels is not None and len(pixels) else {}
    )
    description = {
        "format_version": FORMAT_VERSION,
        "architecture": network.architecture.as_dict(),
        "class_names": list(class_names),
        "preprocessing": preprocessing.as_dict(),
        "thresholds": list(thresholds) if thresholds is not None else None,
        "metrics": dict(metrics),
        "origin": dict(origin or {}),
        "calibration": calibration.as_dict() if calibration is not None else {},
        **({"sets": sets.as_dict()} if sets is not None else {}),
        "parity": {name: asdict(parity) for name, parity in parities.items()},
        "versions": {
            "imgcls": imgcls.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "timm")},
            "python": platform.python_version(),
        },
    }
    write_description(description, folder)
    return parities


def write_weights(network: Network, class_names: Sequence[str], file: Path) -> None:
    """Write the weights of `network` as float32 safetensors, with the class names beside them."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    with atomic_path(file) as temporary:
        save_file(state, temporary, metadata={"format": "pt", "class_names": json.dumps(list(class_names))})
        _sort_header(temporary)


def write_description(description: Mapping[str, Any], folder: Path) -> None:
    """Write `model.json` and the model card."""
    atomic_write_text(folder / CARD, model_card(description))
    atomic_write_text(folder / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def _sort_header(file: Path) -> None:
    """Sort the header of a safetensors file, whose metadata the package writes in random order."""
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the package writes the same without spaces"
        opened.seek(8)
        opened.write(text.ljust(length))


def _verify(
    folder: Path, network: Network, preprocessing: Preprocessing, pixels: np.ndarray, temperature: float
) -> dict[str, Parity]:
    images = preprocessing.normalise(pixels)
    trained = _probabilities_on_cpu(network, images, temperature)
    if not np.isfinite(trained).all():
        log.warning(
            "The network's outputs are not finite, and neither are the export's. Lower optim.lr; "
            "the rules above and debug/rules.json report where it began."
        )
    parities = compare_files(folder, images, network.architecture, trained, temperature)
    for name, parity in parities.items():
        if not parity.sound:
            raise UserError(
                f"The export failed its check: {name} against the trained network: {parity} "
                f"(at most {TOLERANCE} is allowed). "
                + ("export.onnx=false exports without it." if name == "onnx" else "The weights were not fully written.")
            )
        log.info("Export, %s against the trained network: %s.", name, parity)
    return parities


def check(folder: str | Path, pixels: np.ndarray, network: Network | None = None) -> dict[str, Parity]:
    """Compare exported files with the network they came from.

    Args:
        folder: the portable model.
        pixels: uint8 (N, S, S, 3) from `Preprocessing.pixels`.
        network: the exported network; None: `model.onnx` is compared with `model.safetensors`.

    Returns:
        The parity of `safetensors` (with a network) and of `onnx` (with a `model.onnx` and onnxruntime).
    """
    folder, model = Path(folder), load(folder)
    images = model.preprocessing.normalise(pixels)
    temperature = temperature_of(model.description)
    reference = _probabilities_on_cpu(network or model.network, images, temperature)
    parities = compare_files(folder, images, model.network.architecture, reference, temperature)
    if network is None:
        del parities["safetensors"]
    return parities


def compare_files(
    folder: Path, images: np.ndarray, architecture: Architecture, reference: np.ndarray, temperature: float = 1.0
) -> dict[str, Parity]:
    """The files in `folder` on float32 (N, 3, S, S) images, against the (N, C) probabilities `reference`."""
    read = _probabilities_on_cpu(read_network(folder, architecture), images, temperature)
    parities = {"safetensors": compare(reference, read)}
    if (folder / ONNX).is_file() and importlib.util.find_spec("onnxruntime"):
        engine = OnnxEngine(folder / ONNX)
        parts = [softmax(engine.scores(batch)) for batch in _batches(images)]
        parities["onnx"] = compare(reference, np.concatenate(parts))
    return parities


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]


@torch.inference_mode()
def _probabilities_on_cpu(network: Network, images: np.ndarray, temperature: float) -> np.ndarray:
    """float32 (N, C), of logits divided by `temperature`, for float32 (N, 3, S, S) images in evaluation mode.

    On the CPU, which computes in full float32: a GPU's reduced precision is no bug of the export. The network's mode
    and device are restored.
    """
    training, device = network.training, next(network.parameters()).device
    network.eval().cpu()
    try:
        # forward, because calling a compiled network would compile it for the CPU first
        logits = [network.forward(torch.from_numpy(batch)).float() for batch in _batches(images)]
        parts = [(part / temperature).softmax(dim=1).numpy() for part in logits]
    finally:
        network.train(training).to(device)
    return np.concatenate(parts)


class _Scaled(torch.nn.Module):
    """A network whose logits are divided by a temperature."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images) / self.temperature


def export_onnx(network: Network, preprocessing: Preprocessing, file: Path, temperature: float = 1.0) -> bool:
    """Write `file`, whose graph also divides the logits by `temperature`; False without the extra `onnx`.

    Input `images`: normalised float32 (N, 3, S, S); output `scores`: float32 (N, C).
    """
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        return False
    frozen = network_from_architecture(network.architecture)
    frozen.load_state_dict({name: value.float().cpu() for name, value in network.state_dict().items()}, strict=True)
    frozen.eval()
    memory = frozen.head if isinstance(frozen.head, Memory) and network.architecture.views == "one" else None
    levels = {name: logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for logger in levels.values():
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), atomic_path(file) as temporary:
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            frozen.backbone if memory else frozen if temperature == 1 else _Scaled(frozen, temperature),
            (torch.zeros(2, preprocessing.channels, *preprocessing.shape),),
            input_names=["images"],
            output_names=[FEATURES if memory else SCORES],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        if memory:
            write_with_head(program.model_proto, temporary, memory, temperature)
        else:
            program.save(str(temporary))
    return True
