"""Weights from a file or another run, read without executing anything from it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgcls.errors import UserError
from imgcls.models.backbones import Network

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema", "model_state")
PREFIXES = ("module.", "_orig_mod.", "network.", "model.")
CLASSIFIERS = ("fc.", "classifier.", "head.fc.", "head.", "last_linear.")


def load_weights(network: Network, source: Path) -> None:
    """Fill `network` with the weights in `source`.

    Args:
        network: changed in place. A head of another shape keeps its random weights, with a notice.
        source: a `.safetensors` file; a `.pth`, `.pt`, `.bin` or `.ckpt` file with a state dictionary (of imgcls,
            timm or torchvision); or a run folder, whose exported model or best checkpoint is taken.

    Raises:
        UserError: the file cannot be read, or holds another architecture.
    """
    file = _file_of(source)
    state = _without_prefixes(read_state(file))
    if not any(name.startswith("backbone.") for name in state):
        state = {f"backbone.{name}": value for name, value in state.items()}
    own = network.state_dict()
    backbone = {name: value for name, value in own.items() if name.startswith("backbone.")}
    given = {name: value for name, value in state.items() if name.startswith("backbone.")}
    extra = [name for name in given if name not in backbone]
    unexpected = [name for name in extra if not name.removeprefix("backbone.").startswith(CLASSIFIERS)]
    missing = [name for name in backbone if name not in given and not name.endswith("num_batches_tracked")]
    shapes = [name for name in backbone if name in given and given[name].shape != backbone[name].shape]
    if missing or unexpected or shapes:
        raise UserError(_misfit(file, network, missing, unexpected, shapes, given, backbone))

    head = {name: value for name, value in state.items() if name.startswith("head.")}
    own_head = {name: value for name, value in own.items() if name.startswith("head.")}
    fits = head.keys() == own_head.keys() and all(head[name].shape == own_head[name].shape for name in head)
    chosen = {name: value for name, value in given.items() if name in backbone}
    if fits and head:
        chosen |= head
    else:
        log.info("%s: only the backbone is taken; the head starts from random weights.", file)
    network.load_state_dict({**own, **chosen})


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dictionary in `file`, on the CPU. Raises UserError where it cannot be read."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"model.weights={file}: no weights can be read from it ({reason[:160]}).") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)} if _is_state(content) else {}
    )
    if not tensors:
        raise UserError(f"model.weights={file}: it holds no state dictionary.")
    return tensors


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(name, str) for name in content)


def _file_of(source: Path) -> Path:
    if not source.is_dir():
        if not source.is_file():
            raise UserError(f"model.weights={source}: no such file.")
        return source
    for inside in ("model/model.safetensors", "checkpoints/best.ckpt", "model.safetensors"):
        if (source / inside).is_file():
            return source / inside
    raise UserError(f"model.weights={source}: this folder holds neither an exported model nor a best checkpoint.")


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            if state and all(name.startswith(prefix) for name in state):
                state, changed = {name.removeprefix(prefix): value for name, value in state.items()}, True
    return state


def _misfit(
    file: Path,
    network: Network,
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
    given: dict[str, Tensor],
    backbone: dict[str, Tensor],
) -> str:
    parts = [f"{len(missing)} tensors missing"] if missing else []
    parts += [f"{len(unexpected)} unknown"] if unexpected else []
    if shapes:
        name = shapes[0]
        parts.append(f"{name} is {tuple(given[name].shape)}, not {tuple(backbone[name].shape)}")
    architecture = network.architecture["name"]
    return (
        f"model.weights={file} holds another architecture than {architecture} ({', '.join(parts)}). "
        "Choose the model that the weights were trained with, and its model.stem."
    )
