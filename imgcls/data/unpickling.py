"""Read the arrays in CIFAR-10's original batches, which are pickles, without executing anything in them."""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np

_NUMERIC = re.compile(r"[iuf][1248]")


class UnsafePickle(Exception):  # noqa: N818 - describes the file
    """The content is not a pickle, or asks for more than arrays."""


class _Type:
    """Replaces numpy.dtype, whose own __setstate__ can crash on a damaged state."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = _text(name)

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if not _NUMERIC.fullmatch(self.name) or order not in "<>|=":
            raise UnsafePickle("it asks for an array that is not numeric")
        self.dtype = np.dtype(order.replace("|", "=") + self.name)


class _Array:
    """Replaces numpy.ndarray for the same reason; `array` is its content."""

    array: np.ndarray

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran_order, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        self.array = np.frombuffer(content, dtype=kind.dtype).reshape(shape, order="F" if fortran_order else "C")


# Not pickle.Unpickler, which allocates up to 64 GB if a damaged file has a large object number.
class _ArraysOnly(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The few names that an array of plain numbers needs."""
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _Array
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return _Type if name == "dtype" else _Array
        if (module, name) == ("_codecs", "encode"):  # how Python 3 stores bytes in the old protocol
            return lambda text, encoding: text.encode("latin1")
        raise UnsafePickle(f"it asks for {module}.{name}, which is not an array")


def read_arrays(content: bytes) -> dict[Any, Any]:
    """Read the dictionary in `content`, of numbers, text, lists and arrays. Raises UnsafePickle for anything else."""
    try:
        loaded = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        return {key: value.array if isinstance(value, _Array) else value for key, value in loaded.items()}
    except UnsafePickle:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UnsafePickle(f"it is not a complete pickle: {error}") from error


def _text(name: str | bytes) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else name
