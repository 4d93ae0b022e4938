"""CIFAR-10's original batches are pickles; this reads the arrays in them and can run nothing else."""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np

_NUMBERS = re.compile(r"[iuf][1248]")


class UnsafePickle(Exception):  # noqa: N818 - it says what the file is
    """The content is no pickle, or asks for more than arrays."""


class _Type:
    """Stands for numpy.dtype, whose own way of taking up a state may crash on a damaged one."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = _text(name)

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if not _NUMBERS.fullmatch(self.name) or order not in "<>|=":
            raise UnsafePickle("it asks for an array of something else than numbers")
        self.dtype = np.dtype(order.replace("|", "=") + self.name)


class _Array:
    """Stands for numpy.ndarray in the same way; `array` is what it holds."""

    array: np.ndarray

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        self.array = np.frombuffer(content, dtype=kind.dtype).reshape(shape, order="F" if by_columns else "C")


# Not pickle.Unpickler, which takes up to 64 GB at once where a damaged file numbers an object so.
class _ArraysOnly(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what an array of plain numbers needs."""
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _Array
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return _Type if name == "dtype" else _Array
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in the old protocol
            return lambda text, encoding: text.encode("latin1")
        raise UnsafePickle(f"it asks for {module}.{name}, which is not an array")


def read_arrays(content: bytes) -> dict[Any, Any]:
    """The dictionary in `content`, of numbers, text, lists and arrays. Raises UnsafePickle for anything else."""
    try:
        found = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        return {key: value.array if isinstance(value, _Array) else value for key, value in found.items()}
    except UnsafePickle:
        raise
    except Exception as error:  # a damaged pickle raises whatever its random operations raise
        raise UnsafePickle(f"it is no whole pickle: {error}") from error


def _text(name: str | bytes) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else name
