"""A portable model as a repository of the Hugging Face hub, which timm loads too where it has the same network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from imgcls.errors import first_line
from imgcls.images.preprocessing import Preprocessing, sides
from imgcls.models.backbones import timm_options
from imgcls.models.network import Network
from imgcls.models.timm_names import CLASSIFIER, timm_name
from imgcls.portable.card import model_card
from imgcls.portable.description import CARD, DESCRIPTION, NOVELTY, ONNX, WEIGHTS
from imgcls.portable.model import load

CONFIG = "config.json"
FILES = (DESCRIPTION, WEIGHTS, ONNX, NOVELTY, CARD, CONFIG)
"""What a repository can have; nothing else of the model's folder is published."""
TOLERANCE = 1e-3  # of logits
CROP_MODES = {"crop": "center", "pad": "border", "squash": "squash"}


def write_repository(source: Path, target: Path, repo: str, licence: str | None = None) -> str | None:
    """Write what is published of the portable model `source` to the empty folder `target`.

    Args:
        source: the folder of the portable model.
        target: an existing folder.
        repo: user/name, for the card.
        licence: replaces that of the model.

    Returns:
        Why timm cannot load it; None if it can: its weights then have timm's names, and `config.json` is timm's.

    Raises:
        UserError: there is no model, or it is damaged.
    """
    model = load(source)
    description: dict[str, Any] = {**model.description, **({"license": licence} if licence else {})}
    for name in (ONNX, NOVELTY):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    found = _as_timm(model.network)
    if isinstance(found, str):
        shutil.copyfile(source / WEIGHTS, target / WEIGHTS)
    else:
        classifier = found.pretrained_cfg["classifier"]
        _rename_tensors(source / WEIGHTS, target / WEIGHTS, str(classifier))
        config = timm_config(found, model.network, model.preprocessing, model.class_names)
        (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (target / DESCRIPTION).write_text(text, encoding="utf-8")
    card = model_card(description, repo, "imgcls" if isinstance(found, str) else "timm")
    (target / CARD).write_text(card, encoding="utf-8")
    return found if isinstance(found, str) else None


@torch.inference_mode()
def _as_timm(network: Network) -> Any:
    """timm's network with the weights of `network`, checked on two images; or why it has none that is the same."""
    architecture = network.architecture
    reasons = {
        f"the head is of the kind {architecture.head['kind']}": architecture.head["kind"] != "linear",
        f"it averages over views={architecture.views}": architecture.views != "one",
        f"it has {architecture.backbones} backbones": architecture.backbones != 1,
        "model.stem=small is not timm's": architecture.stem != "standard",
        f"{architecture.name} is not timm's": not type(network.backbone).__module__.startswith("timm."),
    }
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        return reason
    try:
        model: Any = timm.create_model(
            architecture.name, num_classes=architecture.num_classes, **timm_options(architecture)
        ).eval()
        classifier = model.pretrained_cfg["classifier"]
        if not isinstance(classifier, str):
            return f"{architecture.name} has several last layers"
        model.load_state_dict({timm_name(name, classifier): value for name, value in network.state_dict().items()})
        side = sides(architecture.image_size or 64)
        images = torch.rand(2, architecture.in_channels, *side, generator=torch.Generator().manual_seed(0))
        expected, found = network(images), model(images)
    except (RuntimeError, KeyError, TypeError, AssertionError) as error:
        return f"timm's {architecture.name} has other layers ({first_line(error)})"
    same = torch.allclose(expected, found, rtol=TOLERANCE, atol=TOLERANCE)
    return model if same else f"timm's {architecture.name} computes other logits"


def timm_config(
    model: Any, network: Network, preprocessing: Preprocessing, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """The `config.json` from which timm builds `model` again and prepares images for it."""
    inherited = {name: model.pretrained_cfg.get(name) for name in ("first_conv", "fixed_input_size", "pool_size")}
    resized = min(preprocessing.shape) / preprocessing.resize if preprocessing.fit == "crop" else 1.0
    return {
        "architecture": network.architecture.name,
        "num_classes": len(class_names),
        "num_features": network.num_features,
        "label_names": list(class_names),
        "model_args": timm_options(network.architecture),
        "pretrained_cfg": {
            **{name: value for name, value in inherited.items() if value is not None},
            "classifier": model.pretrained_cfg["classifier"],
            "num_classes": len(class_names),
            "input_size": [preprocessing.channels, *preprocessing.shape],
            "interpolation": preprocessing.interpolation,
            "crop_pct": round(resized, 6),
            "crop_mode": CROP_MODES[preprocessing.fit],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
    }


def _rename_tensors(source: Path, target: Path, classifier: str) -> None:
    """Copy a safetensors file with timm's names in its header; the tensors stay the same bytes."""
    with source.open("rb") as opened, target.open("wb") as written:
        header: Mapping[str, Any] = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        renamed = {timm_name(name, classifier): entry for name, entry in header.items() if name != "__metadata__"}
        metadata = {**header.get("__metadata__", {}), CLASSIFIER: classifier}
        text = json.dumps({"__metadata__": metadata, **renamed}, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # the tensors are aligned
        written.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(opened, written)
