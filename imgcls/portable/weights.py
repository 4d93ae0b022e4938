"""Reading safetensors, with or without the package of that name: SageMaker's inference containers lack it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from imgcls.errors import UserError, first_line
from imgcls.models.timm_names import with_own_names

TYPES = {"F32": torch.float32, "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
"""The types that an export writes."""


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors in `file` by name, on the CPU. Raises UserError if it is missing or damaged."""
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file
    except ImportError:
        return read_safetensors(file)
    try:
        file.open("rb").close()  # safetensors calls a file that may not be read missing
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        return with_own_names(load_file(file), metadata)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or first_line(error)}.") from error
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The same as `safetensors.torch.load_file`, without the package.

    The format (huggingface/safetensors, README): the length of the header in eight bytes, little-endian; a JSON header
    with the type, shape and offsets of each tensor; the tensors.
    """
    try:
        content = bytearray(file.read_bytes())
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end].decode())
        metadata = header.pop("__metadata__", None)
        body, tensors = memoryview(content)[end:], {}
        for name, entry in header.items():
            kind, shape, (first, last) = TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            count = math.prod(shape)
            if not 0 <= first <= last <= len(body) or last - first != count * kind.itemsize:
                raise ValueError(f"the header is wrong about {name}")
            empty = torch.empty(shape, dtype=kind)
            tensors[name] = torch.frombuffer(body[first:last], dtype=kind).reshape(shape).clone() if count else empty
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or first_line(error)}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error or type(error).__name__}") from error
    return with_own_names(tensors, metadata)
