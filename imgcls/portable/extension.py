"""Adds a class to a portable model whose head keeps features, without training."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from imgcls.errors import UserError
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.memory import Memory
from imgcls.models.network import Network
from imgcls.portable.description import ONNX, WEIGHTS, temperature_of
from imgcls.portable.engines import OnnxEngine, TorchEngine
from imgcls.portable.exporter import export_onnx, write_description, write_weights
from imgcls.portable.memory_onnx import replace_head
from imgcls.portable.model import PortableModel, softmax
from imgcls.portable.parity import compare
from imgcls.system.files import atomic_folder

CHECKED = 4  # images that go through the new files


def check_class(model: PortableModel, name: str) -> Memory:
    """The head of `model`. Raises UserError if it cannot have another class, or has one of this name."""
    head = model.network.head
    if not isinstance(head, Memory):
        kind = model.network.architecture.head["kind"]
        raise UserError(
            f"This model has a head of kind {kind!r}, which must be trained with all classes. Classes can be added to "
            "models of head=prototype and head=knn."
        )
    if not name.strip() or not name.isprintable():
        raise UserError(f"class={name!r}: give the new class a name.")
    if name in model.class_names:
        raise UserError(f"class={name}: the model has this class already. Choose another name.")
    return head


def extend(
    model: PortableModel, source: Path, target: Path, name: str, features: np.ndarray, pixels: np.ndarray
) -> None:
    """Write the portable model `target`: that of `source` with one more class, whose images have these `features`.

    The logits of the other classes stay the same to the bit, and the temperature that divides them does too: it would
    need validation images of all classes to be fitted again. Metrics, which know nothing of the class, are left out.

    Args:
        model: loaded from `source`, with torch; moved to the CPU.
        source: folder of the model.
        target: replaced whole, or created; may be `source`.
        name: of the class; see `check_class`.
        features: float32 (n, F), of `model`.
        pixels: uint8 (n, S, S, 3), one or more images; up to four check the files.

    Raises:
        UserError: the files do not agree with each other, or cannot be written.
    """
    model.to("cpu")
    before, names = check_class(model, name), [*model.class_names, name]
    old, temperature = model.description, temperature_of(model.description)
    head = before.extended(torch.from_numpy(features)).eval()
    network = Network(model.network.backbone, head, replace(model.network.architecture, num_classes=len(names))).eval()
    _check_old_scores(before, head, features)
    with atomic_folder(target) as partial:
        write_weights(network, names, partial / WEIGHTS)
        _write_onnx(network, source / ONNX, partial / ONNX, model.preprocessing, pixels[:CHECKED], temperature)
        description = {
            # the sets are of validation images without the new class, the results per class of a model without it
            **{field: value for field, value in old.items() if field not in ("sets", "per_class")},
            "architecture": network.architecture.as_dict(),
            "class_names": names,
            "metrics": {},
            "calibration": {**old["calibration"], "effect": {}} if old["calibration"] else {},
            "parity": {},
            "added": {**old.get("added", {}), name: len(features)},
        }
        write_description(description, partial)


def _check_old_scores(before: Memory, after: Memory, features: np.ndarray) -> None:
    """Raise UserError unless both heads give the same scores, to the bit, for the classes of the first."""
    batch = torch.from_numpy(features[:CHECKED])
    with torch.inference_mode():
        scores = before(batch)
        if not torch.equal(scores, after(batch)[:, : scores.shape[1]]):
            raise UserError("The scores of the other classes would change: nothing was written.")


def _write_onnx(
    network: Network,
    source: Path,
    target: Path,
    preprocessing: Preprocessing,
    pixels: np.ndarray,
    temperature: float,
) -> None:
    """Write `target` if there is the same of the model before. Raises UserError if it disagrees with `network`."""
    if not source.is_file() or not importlib.util.find_spec("onnx"):
        return
    assert isinstance(network.head, Memory)
    if not replace_head(source, target, network.head, temperature):  # of another exporter
        export_onnx(network, preprocessing, target, temperature)
    if importlib.util.find_spec("onnxruntime"):
        images = preprocessing.normalise(pixels)
        expected = TorchEngine(network, temperature).outputs(images)
        parity = compare(softmax(expected), softmax(OnnxEngine(target).outputs(images)))
        if not parity.sound:
            raise UserError(f"{ONNX} disagrees with the extended network ({parity}): nothing was written.")
