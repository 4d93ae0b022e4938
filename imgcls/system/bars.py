"""Progress bars, drawn where stderr is a terminal, and lines that go above them."""

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
    """`items` with a progress bar on a terminal; as they are elsewhere."""
    if not on_terminal():
        return items
    bar: Iterable[T] = tqdm(items, total=total, desc=title, unit="", leave=False)
    return bar


def byte_bar(title: str, total: int | None, done: int = 0) -> tqdm:
    """A bar to update with the bytes of a transfer: `total`, if known, of which `done` were transferred before."""
    return tqdm(initial=done, total=total, unit="B", unit_scale=True, desc=title, disable=not on_terminal())


def say(line: str) -> None:
    """Print `line` on stdout, above a bar if one is drawn."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
