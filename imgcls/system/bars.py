"""Progress bars, drawn where stderr is a terminal, and lines that go above them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def with_bar(items: Iterable[T], total: int, title: str) -> Iterable[T]:
    """`items` with a progress bar on a terminal; as they are elsewhere."""
    if not sys.stderr.isatty():
        return items
    bar: Iterable[T] = tqdm(items, total=total, desc=title, unit="", leave=False)
    return bar


def say(line: str) -> None:
    """Print `line` on stdout, above a bar if one is drawn."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
