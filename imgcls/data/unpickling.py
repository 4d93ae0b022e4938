"""CIFAR-10's original batches are pickles; this reads the arrays in them and can run nothing else."""

from __future__ import annotations

import codecs
import io
import pickle
from typing import Any

import numpy as np

_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes in the old protocol
}


class UnsafePickle(Exception):  # noqa: N818 - it says what the file is
    """The content is no pickle, or asks for more than arrays."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what an array of plain numbers needs."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UnsafePickle(f"it asks for {module}.{name}, which is not an array") from None


def read_arrays(content: bytes) -> Any:
    """The dictionaries, lists, numbers and arrays in `content`. Raises UnsafePickle for anything else."""
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except (UnsafePickle, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises whatever its random operations raise
        raise UnsafePickle(f"it is no whole pickle: {error}") from error
