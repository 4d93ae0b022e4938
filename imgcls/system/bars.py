"""Progress bars, drawn on terminals and in notebooks, and lines that are printed above them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

from imgcls.system.notebook import in_notebook

T = TypeVar("T")


def is_watched() -> bool:
    """Whether bars are drawn: where stderr is a terminal, and in notebooks."""
    return sys.stderr.isatty() or in_notebook()


def with_bar(items: Iterable[T], total: int | None, title: str) -> Iterable[T]:
    """`items`, with a progress bar where somebody watches."""
    if not is_watched() or total == 0:
        return items
    bar: Iterable[T] = tqdm(items, total=total, desc=title, unit="", leave=False)
    return bar


def byte_bar(title: str, total: int | None, done: int = 0, *, shown: bool = True) -> tqdm:
    """A bar to update with the bytes of a transfer of `total` bytes, if known, which resumes after `done`."""
    hidden = not (shown and is_watched())
    return tqdm(initial=done, total=total, unit="B", unit_scale=True, desc=title, disable=hidden)


def say(line: str) -> None:
    """Print `line` on stdout, above a bar if one is drawn."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
