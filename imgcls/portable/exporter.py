"""Writing a portable model, and checking the files against the trained network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import imgcls
from imgcls.errors import UserError
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.architecture import Architecture
from imgcls.models.backbones import network_with_weights
from imgcls.models.memory import Memory
from imgcls.models.network import Network
from imgcls.portable.calibration import Calibration
from imgcls.portable.card import model_card
from imgcls.portable.conformal import ClassSets
from imgcls.portable.description import CARD, DESCRIPTION, FORMAT_VERSION, NOVELTY, ONNX, WEIGHTS, temperature_of
from imgcls.portable.engines import OnnxEngine, as_columns, read_network, read_novelty
from imgcls.portable.examples import write_examples
from imgcls.portable.exported import Exported, MeanFeatures, WithUnsureImages
from imgcls.portable.graphs import export_graph
from imgcls.portable.memory_onnx import FEATURES, SCORES, write_with_head
from imgcls.portable.model import load, softmax
from imgcls.portable.novelty import MEANS, Novelty
from imgcls.portable.parity import TOLERANCE, Parity, compare
from imgcls.portable.views_onnx import AGAIN, IMAGES, ROWS, UNSURE, choose_images
from imgcls.system.files import atomic_folder, atomic_path, atomic_write_text

log = logging.getLogger(__name__)

BATCH_SIZE = 8  # images that go through a network at once in a check
MAX_ONNX_BYTES = 2**31 - 2**26  # a protobuf message has at most 2 GB; the rest is for the graph
NOVELTY_TOLERANCE = 0.01  # of a scale on which 1 is the bound of known images


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
    novelty: Novelty | None = None,
    about: Mapping[str, Any] | None = None,
    examples: Sequence[Image.Image] = (),
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
        sets: of classes with a given coverage; None: the model has none.
        novelty: by which it knows unknown images; None: it does not.
        about: further fields of `model.json` for the card, see `imgcls.runs.about`.
        examples: images that the server's page offers.

    Returns:
        How well the files agree with the network, see `check`; empty without images.

    Raises:
        UserError: the files disagree with the network. A model that was there before stays.
    """
    temperature = calibration.temperature if calibration is not None else 1.0
    exported = Exported(network, temperature, novelty)
    with atomic_folder(folder) as partial:
        write_weights(network, class_names, partial / WEIGHTS)
        write_examples(examples, partial)
        if onnx:
            export_onnx(network, preprocessing, partial / ONNX, temperature, novelty)
        if novelty is not None:
            from safetensors.torch import save_file

            with atomic_path(partial / NOVELTY) as temporary:
                save_file({MEANS: torch.from_numpy(novelty.means)}, temporary)
        parities = _verify(partial, exported, preprocessing, pixels) if pixels is not None and len(pixels) else {}
        description = {
            "format_version": FORMAT_VERSION,
            "architecture": network.architecture.as_dict(),
            "class_names": list(class_names),
            "preprocessing": preprocessing.as_dict(),
            "thresholds": list(thresholds) if thresholds is not None else None,
            "metrics": dict(metrics),
            "origin": dict(origin or {}),
            **(about or {}),
            "calibration": calibration.as_dict() if calibration is not None else {},
            **({"sets": sets.as_dict()} if sets is not None else {}),
            **({"novelty": novelty.as_dict()} if novelty is not None else {}),
            "parity": {name: asdict(parity) for name, parity in parities.items()},
            "versions": {
                "imgcls": imgcls.__version__,
                **{name: importlib.metadata.version(name) for name in ("torch", "timm")},
                "python": platform.python_version(),
            },
        }
        write_description(description, partial)
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


def _verify(folder: Path, exported: Exported, preprocessing: Preprocessing, pixels: np.ndarray) -> dict[str, Parity]:
    images = preprocessing.normalise(pixels)
    trained = _outputs_on_cpu(exported, images)
    finite = np.isfinite(trained).all()
    if not finite:
        log.warning(
            "The network's outputs are not finite, and neither are the export's. Lower optim.lr; "
            "the rules above and debug/rules.json report where it began."
        )
    architecture = exported.network.architecture
    parities = compare_files(folder, images, architecture, trained, float(exported.temperature), exported.novelty)
    for name, parity in parities.items():
        if not parity.sound:
            raise UserError(
                f"The export failed its check: {name} against the trained network: {parity} "
                f"(at most {TOLERANCE} is allowed). "
                + ("export.onnx=false exports without it." if name == "onnx" else "The weights were not fully written.")
            )
        if finite:
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
    temperature, novelty = temperature_of(model.description), read_novelty(folder, model.description)
    reference = _outputs_on_cpu(Exported(network or model.network, temperature, novelty), images)
    parities = compare_files(folder, images, model.network.architecture, reference, temperature, novelty)
    if network is None:
        del parities["safetensors"]
    return parities


def compare_files(
    folder: Path,
    images: np.ndarray,
    architecture: Architecture,
    reference: np.ndarray,
    temperature: float = 1.0,
    novelty: Novelty | None = None,
) -> dict[str, Parity]:
    """The files in `folder` on float32 (N, 3, S, S) images, against the outputs `reference`, (N, C) or (N, C + 1)."""
    read = _outputs_on_cpu(Exported(read_network(folder, architecture), temperature, novelty), images)
    parities = {"safetensors": _compare(reference, read, architecture.num_classes)}
    if (folder / ONNX).is_file() and importlib.util.find_spec("onnxruntime"):
        engine = OnnxEngine(folder / ONNX)
        parts = [engine.outputs(batch) for batch in _batches(images)]
        parities["onnx"] = _compare(reference, np.concatenate(parts), architecture.num_classes)
    return parities


def _compare(first: np.ndarray, second: np.ndarray, classes: int) -> Parity:
    """The parity of the probabilities; images whose novelty differs by more than NOVELTY_TOLERANCE do not agree."""
    if first.shape != second.shape:
        raise ValueError(f"outputs have the shapes {first.shape} and {second.shape}")
    parity = compare(softmax(first[:, :classes]), softmax(second[:, :classes]))
    close = np.isclose(first[:, classes:], second[:, classes:], rtol=0, atol=NOVELTY_TOLERANCE, equal_nan=True)
    return replace(parity, agreement=min(parity.agreement, float(close.all(axis=1).mean()))) if len(first) else parity


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]


@torch.inference_mode()
def _outputs_on_cpu(exported: Exported, images: np.ndarray) -> np.ndarray:
    """The outputs of an engine, float32 (N, C) or (N, C + 1), for float32 (N, 3, S, S) images in evaluation mode.

    On the CPU, which computes in full float32: a GPU's reduced precision is no bug of the export. The network's mode
    and device are restored.
    """
    network = exported.network
    training, device = network.training, next(network.parameters()).device
    network.eval().cpu()
    try:
        parts = [as_columns(exported(torch.from_numpy(batch))) for batch in _batches(images)]
    finally:
        network.train(training).to(device)
    return np.concatenate(parts)


def export_onnx(
    network: Network,
    preprocessing: Preprocessing,
    file: Path,
    temperature: float = 1.0,
    novelty: Novelty | None = None,
) -> bool:
    """Write the ONNX file of a network, whose graph also divides the logits by `temperature`.

    Input `images`: normalised float32 (N, 3, H, W); outputs `scores`: float32 (N, C), and with `novelty` also
    `novelty`: float32 (N,).

    Returns:
        Whether it was written: not without the extra `onnx`, nor for a network of 2 GB.
    """
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        return False
    if 4 * sum(value.numel() for value in network.state_dict().values()) > MAX_ONNX_BYTES:
        log.warning("The network is too large for an ONNX file, which holds 2 GB at most; it is exported without one.")
        return False
    state = {name: value.float().cpu() for name, value in network.state_dict().items()}
    frozen = network_with_weights(network.architecture, state).eval()
    memory = frozen.head if isinstance(frozen.head, Memory) else None
    chooses = network.architecture.views == "where_unsure" and memory is None
    exported = Exported(frozen, temperature, novelty).eval()
    traced: torch.nn.Module = frozen if temperature == 1 and novelty is None else exported
    outputs = [SCORES] if novelty is None else [SCORES, "novelty"]
    shape = preprocessing.channels, *preprocessing.shape
    inputs, sizes = {IMAGES: torch.zeros(2, *shape)}, [torch.export.Dim("batch", min=1)]
    if memory is not None:
        traced, outputs = MeanFeatures(frozen), [FEATURES]
    elif chooses:
        traced, outputs = WithUnsureImages(exported), [*outputs, UNSURE]
        inputs |= {ROWS: torch.arange(3) % 2, AGAIN: torch.zeros(3, *shape)}
        sizes += [torch.export.Dim(UNSURE, min=1)] * 2
    change = choose_images if chooses else None
    model = export_graph(traced, inputs, outputs, sizes, network.architecture, change)
    with atomic_path(file) as temporary:
        if memory is not None:
            write_with_head(model, temporary, memory, temperature)
        else:
            temporary.write_bytes(model.SerializeToString(deterministic=True))
    return True
