"""Read the tensors in a file of weights, whoever wrote it, without executing anything from it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from imgcls.errors import UserError, first_line
from imgcls.models.timm_names import with_own_names

MAX_DEPTH = 4  # of dictionaries in dictionaries: {"callbacks": {"EMA": {"state_dict": ...}}}


class _Inert:
    """Stands for every class and function in a pickle that is not a tensor: it only keeps what it is given."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_dictionaries(file: Path) -> dict[str, dict[str, Tensor]]:
    """The state dictionaries in `file`, on the CPU, by the path to them: '', 'state_dict', 'ema.module'.

    Reads `.safetensors`, and what torch.save wrote: a state dictionary, the checkpoint of a training that holds
    several, also with arguments and settings of any class, or a whole module. Only tensors are created.

    Raises:
        UserError: the file is damaged, or holds no tensors.
    """
    if file.suffix == ".safetensors":
        content, is_inert = _read_safetensors(file), False
    else:
        content, is_inert = _read_pickle(file)
    found = {path: tensors for path, tensors in _walk(content, "", MAX_DEPTH) if tensors}
    if not found:
        pickled = "an object that needs pickled code, which imgcls never executes" if is_inert else "other values"
        raise UserError(
            f"model.weights={file} contains no state dictionary, but {pickled}. "
            "Save the state dictionary with torch.save or safetensors."
        )
    return found


def read_class_names(file: Path) -> list[str]:
    """The class names that imgcls stored in `file` or beside it, in the order of the logits; [] if there are none."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            stored = (opened.metadata() or {}).get("class_names")
        if stored is not None:
            return list(json.loads(stored))
    for beside in (file.with_name("model.json"), file.parent.parent / "data.json"):
        try:
            return list(json.loads(beside.read_text(encoding="utf-8"))["class_names"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        file.open("rb").close()  # safetensors calls a file that may not be read missing
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        return with_own_names(load_file(file), metadata)
    except Exception as error:
        raise UserError(f"model.weights={file} cannot be read ({first_line(error)}).") from error


def _read_pickle(file: Path) -> tuple[Any, bool]:
    """The content of `file`, and whether something in it was replaced by an `_Inert`."""
    try:
        unsafe = get_unsafe_globals_in_checkpoint(file)
    except Exception:  # an older format, which torch.load reads, or a damaged file, about which it complains
        unsafe = []
    try:
        with safe_globals([(_Inert, name) for name in unsafe]):
            return torch.load(file, map_location="cpu", weights_only=True), bool(unsafe)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model.weights={file} is damaged, or needs pickled code, which imgcls never executes. "
            "Save the state dictionary with torch.save or safetensors."
        ) from error
    except Exception as error:
        raise UserError(f"model.weights={file} cannot be read ({first_line(error)}).") from error


def _walk(content: Any, path: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dictionaries of tensors in `content`, outermost first."""
    if isinstance(content, _Inert):
        yield path, {name: _plain(value) for name, value in _module_state(content, "") if _has_values(value)}
    elif isinstance(content, Mapping):
        named = {name: value for name, value in content.items() if isinstance(name, str)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        yield path, {name: _plain(value) for name, value in tensors.items() if _has_values(value)}
        if depth:
            for name, value in named.items():
                yield from _walk(value, f"{path}.{name}" if path else name, depth - 1)


def _has_values(tensor: Tensor) -> bool:
    return not tensor.is_meta and not tensor.is_complex()


def _plain(tensor: Tensor) -> Tensor:
    """`tensor` as a dense one of ordinary numbers, without gradients."""
    tensor = tensor.detach()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _module_state(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The state dictionary of a whole module that was pickled."""
    state = vars(module) if isinstance(module, _Inert) else {}
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
    for name, child in (state.get("_modules") or {}).items():
        yield from _module_state(child, f"{prefix}{name}.")
