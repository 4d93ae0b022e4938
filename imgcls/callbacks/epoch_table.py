"""What a training shows of each epoch: an aligned row for people, a line of name=value for programs."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from html import escape

from imgcls.callbacks.history import Announce, Row, metric_line
from imgcls.system.bars import say
from imgcls.system.notebook import LiveHtml, in_notebook

TITLES = {"val/macro_f1": "macro F1", "seconds": "time"}
PERCENT = ("val/accuracy", "train/accuracy", "val/accuracy_top5")
BOLD, PLAIN = "\033[1m", "\033[0m"


class EpochTable:
    """Formats one row per epoch, in up to 80 columns; `*` marks an epoch that is the best so far.

    Args:
        monitor: the metric that selects the best epoch, a column of its own.
        mode: 'max' or 'min'.
        epochs: of the whole training; None where nobody knows; 0 where the head is solved without any.
        bold: whether the best epochs are set in bold.
    """

    def __init__(self, monitor: str, mode: str, epochs: int | None, *, bold: bool = False) -> None:
        self.monitor, self.mode, self.epochs, self.bold = monitor, mode, epochs, bold
        names = ["train/loss", "val/loss", "val/accuracy", "val/macro_f1"]
        if monitor == "val/map":
            names.remove("val/accuracy")  # which images with several labels do not have
        self.columns = [*names, monitor] if monitor not in names else names
        self._headed = False

    def lines(self, rows: Sequence[Row]) -> list[str]:
        """The line of the last of `rows`, which are all epochs so far, and before the first the titles."""
        cells = self._cells(rows[-1])
        widths = {title: max(len(title), 7) for title in cells}
        line = "  ".join(f"{text:>{widths[title]}}" for title, text in cells.items())
        line = f"{'*' if self._is_best(rows) else ' '} {line}"
        if self.bold and line.startswith("*"):
            line = f"{BOLD}{line}{PLAIN}"
        if self._headed:
            return [line]
        self._headed = True
        return [f"  {'  '.join(f'{title:>{widths[title]}}' for title in cells)}", line]

    def html(self, rows: Sequence[Row]) -> str:
        """All `rows` as a table in HTML, the best epoch so far in bold type."""
        best = max((count for count in range(1, len(rows) + 1) if self._is_best(rows[:count])), default=0)
        lines = []
        for number, row in enumerate(rows, start=1):
            style = ' style="font-weight: bold"' if number == best else ""
            lines.append(f"<tr{style}>{''.join(f'<td>{escape(text)}</td>' for text in self._cells(row).values())}</tr>")
        titles = "".join(f"<th>{escape(title)}</th>" for title in self._cells(rows[-1]))
        return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table>"

    def _cells(self, row: Row) -> dict[str, str]:
        """What stands under each title."""
        total = f"/{self.epochs}" if self.epochs and self.epochs > 0 else ""
        return {
            "epoch": "solved" if self.epochs == 0 else f"{int(row['epoch'])}{total}",
            "lr": "-" if self.epochs == 0 else f"{row['lr']:.1e}",
            **{TITLES.get(name, name.replace("/", " ")): self._text(name, row) for name in self.columns},
            TITLES["seconds"]: f"{row['seconds']:.1f} s" if row["seconds"] < 100 else f"{row['seconds']:.0f} s",
        }

    def _text(self, name: str, row: Mapping[str, float | int]) -> str:
        if name not in row:
            return "-"
        return f"{row[name]:.2%}" if name in PERCENT else f"{row[name]:.4f}"

    def _is_best(self, rows: Sequence[Row]) -> bool:
        values = [row[self.monitor] for row in rows if self.monitor in row]
        if self.monitor not in rows[-1] or math.isnan(values[-1]):
            return False
        sign = 1 if self.mode == "max" else -1
        return all(sign * values[-1] > sign * value or math.isnan(value) for value in values[:-1])


def epoch_printer(monitor: str, mode: str, epochs: int | None) -> Announce:
    """What reports each epoch: a row of an `EpochTable` on a terminal, the line of `metric_line` elsewhere.

    In a notebook the table is below the cell. Rows are not set in bold where NO_COLOR is set (no-color.org).
    """
    if in_notebook():
        below, of_notebook = LiveHtml(), EpochTable(monitor, mode, epochs)
        return lambda rows: below.show(of_notebook.html(rows))
    if not sys.stdout.isatty():
        return lambda rows: say(metric_line(rows[-1]))
    table = EpochTable(monitor, mode, epochs, bold=not os.environ.get("NO_COLOR"))
    return lambda rows: say("\n".join(table.lines(rows)))
