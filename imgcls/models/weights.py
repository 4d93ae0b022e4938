"""Weights from a file or another run, read without executing anything from it."""

from __future__ import annotations

import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imgcls.errors import UserError
from imgcls.models.network import Network

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state")
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
    given = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    if _misfit(network, given):
        given = _as_this_timm_names_them(network.backbone, given)
    _leave_out_other_stem(network, given, file)
    misfit = _misfit(network, given)
    if misfit:
        raise UserError(
            f"model.weights={file} holds another architecture than {network.architecture.name} ({misfit}). "
            "Choose the model that the weights were trained with, and its model.stem."
        )
    own = network.backbone.state_dict()
    network.backbone.load_state_dict({**own, **{name: given[name] for name in own if name in given}})

    head = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    own_head = network.head.state_dict()
    if head and _shapes(head) == _shapes(own_head):
        network.head.load_state_dict(head)
    else:
        log.info("%s: only the backbone is taken; the head starts from random weights.", file)


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dictionary in `file`, on the CPU. Raises UserError where it cannot be read."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model.weights={file}: it is damaged, or needs pickled code, which imgcls never executes. "
            "Save its state dictionary with torch.save or safetensors."
        ) from error
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


def _shapes(state: dict[str, Any]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _misfit(network: Network, given: dict[str, Tensor]) -> str:
    """Why these weights are not those of the network's backbone; empty where they are."""
    own = network.backbone.state_dict()
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in own and not name.startswith(CLASSIFIERS)]
    shapes = [name for name in own if name in given and given[name].shape != own[name].shape]
    parts = [f"{len(missing)} tensors missing"] if missing else []
    parts += [f"{len(unknown)} unknown"] if unknown else []
    if shapes:
        name = shapes[0]
        parts.append(f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}")
    return ", ".join(parts)


def _as_this_timm_names_them(backbone: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights after timm's own conversion: older names, positions of a transformer for another picture size."""
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return given
    try:
        converted = convert(dict(given), backbone)
    except Exception as error:  # it expects weights of this architecture, and these may be any
        log.debug("timm's conversion of the weights failed: %s", error)
        return given
    return {name: value for name, value in converted.items() if isinstance(value, Tensor)}


def _leave_out_other_stem(network: Network, given: dict[str, Tensor], file: Path) -> None:
    """With a small stem, keep the new first kernel where the given one is of the standard stem."""
    name = f"{getattr(network.backbone, 'default_cfg', {}).get('first_conv')}.weight"
    own = network.backbone.state_dict()
    if network.architecture.stem == "small" and name in given and given[name].shape[2:] != own[name].shape[2:]:
        log.info("%s: the first convolution is not of a small stem; it starts from random weights.", file)
        given[name] = own[name]
