"""What a section of a page consists of. Each kind of block is drawn by the macro of `blocks.html.j2` of its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgcls.debug.rules import NO_ISSUES
from imgcls.report.figures import Chart


@dataclass(frozen=True)
class Block:
    """A part of a section."""

    @property
    def kind(self) -> str:
        """The name of its macro."""
        return type(self).__name__.lower()


Blocks = Sequence[Block]


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; `soft` in the colour of notes."""

    text: str
    soft: bool = False


@dataclass(frozen=True)
class Figure(Block):
    """Panels of charts beside each other.

    Args:
        svgs: the panels as <svg> elements.
        name: the panels are also written as `figures/NAME.png`; empty where they are not.
        png: that file.
        wide_rem: the width below which it cannot be read: a phone scrolls. 0: it shrinks.
    """

    svgs: Sequence[str]
    name: str = ""
    png: bytes = b""
    wide_rem: float = 0

    @classmethod
    def of(cls, *charts: Chart, name: str = "", wide_rem: float = 0) -> Figure:
        """Draw `charts`; with a `name`, the first one also as a file."""
        svgs = [svg for chart in charts for svg in chart.as_svgs()]
        return cls(svgs, name, charts[0].as_png() if name else b"", wide_rem)


@dataclass(frozen=True)
class Table(Block):
    """A table that is sorted by a click on a head.

    Args:
        head: names of the columns.
        rows: cells; text is escaped, markup is not.
        numeric: the columns that hold numbers.
        total: the last row.
        title: above it.
        note: below it.
        fold: the text that unfolds it; empty: it is open.
        file: name of the CSV file that a button makes of it, without its ending; empty: that of the section.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()
    total: Sequence[str] = ()
    title: str = ""
    note: str = ""
    fold: str = ""
    file: str = ""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, object]], most: int, file: str, title: str, count: int = 0) -> Table:
        """The first `most` of `rows`, whose keys are the column heads; the others of `count` are in `file`."""
        left = (count or len(rows)) - most
        cells = [[str(cell) for cell in row.values()] for row in rows[:most]]
        return cls(list(rows[0]), cells, title=title, note=f"… and {left} more in {file}" if left > 0 else "")


@dataclass(frozen=True)
class Pictures(Block):
    """Small images with their classes, each larger after a click.

    Args:
        pictures: each `image` (JPEG as base64, or empty), `file`, `label`, `predicted` and `note`.
        title: above them.
        search: whether there is a field that searches in their classes and files.
    """

    pictures: Sequence[Mapping[str, str]]
    title: str = ""
    search: bool = False


@dataclass(frozen=True)
class Matrix(Block):
    """A confusion matrix, drawn by the page's script, which normalises it and reads it out to keys and pointer.

    Args:
        names: of the C classes.
        cells: [row, column, number of images] of the cells that have any.
        errors: the anchor of the misclassified images, which a click on a cell searches; empty: there are none.
    """

    names: Sequence[str]
    cells: Sequence[Sequence[int]]
    errors: str = ""


@dataclass(frozen=True)
class Findings(Block):
    """What rules found: outcomes as in `rules.json`."""

    outcomes: Sequence[Mapping[str, Any]]

    @property
    def fired(self) -> list[Mapping[str, Any]]:
        """Those that found something, or could not be checked."""
        return [outcome for outcome in self.outcomes if outcome["status"] != NO_ISSUES]

    @property
    def silent(self) -> str:
        """The names of the others."""
        return ", ".join(outcome["rule"] for outcome in self.outcomes if outcome["status"] == NO_ISSUES)


@dataclass(frozen=True)
class Preformatted(Block):
    """Text of a file, folded under its title."""

    title: str
    text: str
