"""Tables as CSV, in which names are data: no text is a formula, and all are read back as they were."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SEPARATORS = (";", "|", "\t")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def as_csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """`rows` as CSV text, see `table_as_csv`; its header has `names`, and every key that any row has."""
    names = list(dict.fromkeys([*names, *(name for row in rows for name in row)]))
    return table_as_csv([names, *([row.get(name, "") for name in names] for row in rows)])


def table_as_csv(rows: Iterable[Iterable[Any]]) -> str:
    """`rows`, the header first, as CSV text, in which no text is a formula for a spreadsheet.

    A text that begins with one of = + - @ gets an apostrophe before it, which `cell_text` removes.
    """
    return "".join(",".join(_cell(value) for value in row) + "\n" for row in rows)


def aligned(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows` as lines of a table whose columns are aligned: the first to the left, the others to the right."""
    head = list(dict.fromkeys(name for row in rows for name in row))
    lines = [head, *([str(row.get(name, "")) for name in head] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(map(str.rjust, line[1:], widths[1:]))]).rstrip() for line in lines
    )


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    if isinstance(value, str) and _FORMULA.match(value):
        text = f"'{text}"
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if re.search(r'[",\r\n]', text) else text  # csv.writer does not quote \r


def join_labels(labels: Iterable[str], names: Iterable[str]) -> str:
    """The `labels` of an image as one cell, with the first of SEPARATORS in between that is in none of all `names`.

    >>> join_labels(["cat", "sofa"], ["cat", "dog", "sofa"])
    'cat;sofa'
    """
    every = list(names)
    return next((mark for mark in SEPARATORS if not any(mark in name for name in every)), ";").join(labels)


def cell_text(cell: str) -> str:
    """The text that was written as `cell`.

    >>> cell_text("'=SUM(A1)")
    '=SUM(A1)'
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
