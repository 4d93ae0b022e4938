"""Load weights from a file or another run, without executing anything from it."""

from __future__ import annotations

import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from imgcls.errors import UserError, first_line
from imgcls.models.network import Network

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state")
PREFIXES = ("module.", "_orig_mod.", "network.", "model.")
CLASSIFIERS = ("fc.", "classifier.", "head.fc.", "head.", "last_linear.")


def load_weights(network: Network, source: Path) -> None:
    """Fill `network` with the weights in `source`.

    Args:
        network: changed in place. A head of another shape keeps its random weights, which is logged.
        source: a `.safetensors` file; a `.pth`, `.pt`, `.bin` or `.ckpt` file with a state dictionary (of imgcls,
            timm or torchvision); or a run folder, whose exported model or best checkpoint is used.

    Raises:
        UserError: the file cannot be read, or has the weights of another architecture.
    """
    file = _find_file(source)
    state = _strip_prefixes(read_state(file))
    if not any(name.startswith("backbone.") for name in state):
        state = {f"backbone.{name}": value for name, value in state.items()}
    loaded = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    if _explain_mismatch(network, loaded):
        loaded = _convert_names(network.backbone, loaded)
    _skip_other_stem(network, loaded, file)
    if mismatch := _explain_mismatch(network, loaded):
        raise UserError(
            f"model.weights={file} has the weights of another architecture than {network.architecture.name} "
            f"({mismatch}). Set model.name and model.stem to what the weights were trained with."
        )
    current = network.backbone.state_dict()
    network.backbone.load_state_dict({**current, **{name: loaded[name] for name in current if name in loaded}})

    head = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    if head and _shapes(head) == _shapes(network.head.state_dict()):
        network.head.load_state_dict(head)
    else:
        log.info("%s: only the backbone is loaded; the head starts from random weights.", file)


def read_state(file: Path) -> dict[str, Tensor]:
    """Read the state dictionary in `file`, on the CPU. Raises UserError if it cannot be read."""
    try:
        if file.suffix == ".safetensors":
            file.open("rb").close()  # safetensors calls a file that may not be read missing
            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model.weights={file} is damaged, or needs pickled code, which imgcls never executes. "
            "Save the state dictionary with torch.save or safetensors."
        ) from error
    except Exception as error:
        raise UserError(f"model.weights={file} cannot be read ({first_line(error)}).") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if isinstance(content, dict) and all(isinstance(name, str) for name in content):
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise UserError(f"model.weights={file} contains no state dictionary.")


def _find_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"model.weights={source}: no such file.")
    for inside in ("model/model.safetensors", "checkpoints/best.ckpt", "model.safetensors"):
        if (source / inside).is_file():
            return source / inside
    raise UserError(f"model.weights={source}: the folder has neither an exported model nor a best checkpoint.")


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state`, which is not empty, without the prefixes that all of its names have."""
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _shapes(state: dict[str, Any]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _explain_mismatch(network: Network, loaded: dict[str, Tensor]) -> str:
    """How the names and shapes of `loaded` differ from those of the backbone; empty if they match."""
    current = network.backbone.state_dict()
    missing = [name for name in current if name not in loaded and not name.endswith("num_batches_tracked")]
    unknown = [name for name in loaded if name not in current and not name.startswith(CLASSIFIERS)]
    shapes = [name for name in current if name in loaded and loaded[name].shape != current[name].shape]
    parts = [f"{len(missing)} tensors missing"] if missing else []
    parts += [f"{len(unknown)} unknown"] if unknown else []
    parts += [f"{name} is {tuple(loaded[name].shape)}, not {tuple(current[name].shape)}" for name in shapes[:1]]
    return ", ".join(parts)


def _convert_names(backbone: nn.Module, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights after timm's own conversion of older names and of position embeddings for another image size."""
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return loaded
    try:
        converted = convert(dict(loaded), backbone)
    except Exception as error:  # it expects weights of this architecture, but these can be of any
        log.debug("timm's conversion of the weights failed: %s", error)
        return loaded
    return {name: value for name, value in converted.items() if isinstance(value, Tensor)}


def _skip_other_stem(network: Network, loaded: dict[str, Tensor], file: Path) -> None:
    """Keep the new first kernel of a small stem where the loaded one belongs to the standard stem."""
    name = f"{getattr(network.backbone, 'default_cfg', {}).get('first_conv')}.weight"
    current = network.backbone.state_dict()
    if network.architecture.stem == "small" and name in loaded and loaded[name].shape[2:] != current[name].shape[2:]:
        log.info("%s: its first convolution has no small stem; the network's starts from random weights.", file)
        loaded[name] = current[name]
