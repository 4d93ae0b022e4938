"""Reading safetensors, also where the package of that name is missing, as in SageMaker's inference containers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from imgcls.errors import UserError

TYPES = {"F32": torch.float32, "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
"""What an export writes: floats in 32 bits, and counters."""


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors in `file`, by name, on the CPU. Raises UserError where it is missing or damaged."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        return read_safetensors(file)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The same as `safetensors.torch.load_file`, without the package.

    The format (huggingface/safetensors, README): eight bytes, the length of a JSON header, little-endian; the header
    with type, shape and place of each tensor; the tensors.
    """
    try:
        content = bytearray(file.read_bytes())
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end].decode())
        header.pop("__metadata__", None)
        body, tensors = memoryview(content)[end:], {}
        for name, entry in header.items():
            kind, shape, (first, last) = TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            count = math.prod(shape)
            if not 0 <= first <= last <= len(body) or last - first != count * kind.itemsize:
                raise ValueError(f"{name} is not where the header says")
            empty = torch.empty(shape, dtype=kind)
            tensors[name] = torch.frombuffer(body[first:last], dtype=kind).reshape(shape).clone() if count else empty
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error or type(error).__name__}") from error
    return tensors
