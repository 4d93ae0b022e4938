"""Progress bars, drawn where stderr is a terminal, and lines that are printed above them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def on_terminal() -> bool:
    """Whether bars are drawn."""
    return sys.stderr.isatty()


def with_bar(items: Iterable[T], total: int | None, title: str) -> Iterable[T]:
    """`items`, on a terminal with a progress bar."""
    if not on_terminal():
        return items
    bar: Iterable[T] = tqdm(items, total=total, desc=title, unit="", leave=False)
    return bar


def byte_bar(title: str, total: int | None, done: int = 0) -> tqdm:
    """A bar to update with the bytes of a transfer of `total` bytes, if known, which resumes after `done`."""
    return tqdm(initial=done, total=total, unit="B", unit_scale=True, desc=title, disable=not on_terminal())


def say(line: str) -> None:
    """Print `line` on stdout, above a bar if one is drawn."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
