"""Python's garbage collector, where it takes seconds to find nothing."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """For imports of heavy packages, whose million objects stay: the collector never goes through them."""
    enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:  # not each time, which would keep what has become garbage in between
            gc.freeze()
        if enabled:
            gc.enable()
