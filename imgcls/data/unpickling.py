"""CIFAR-10's original batches are pickles; this reads the arrays in them and can run nothing else."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np


class UnsafePickle(Exception):  # noqa: N818 - it says what the file is
    """The pickle asks for more than arrays."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what an array of plain numbers needs."""
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            import codecs

            return codecs.encode
        raise UnsafePickle(f"it asks for {module}.{name}, which is not an array")


def read_arrays(content: bytes) -> Any:
    """The dictionaries, lists, numbers and arrays in `content`. Raises UnsafePickle for anything else."""
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, IndexError, AttributeError) as error:
        raise UnsafePickle(str(error)) from error
