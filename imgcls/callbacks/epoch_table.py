"""What a training prints of each epoch: an aligned row for people, a line of name=value for programs."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence

from imgcls.callbacks.history import Announce, Row, metric_line
from imgcls.system.bars import say

TITLES = {"val/macro_f1": "macro F1", "seconds": "time"}
PERCENT = ("val/accuracy", "train/accuracy", "val/accuracy_top5")
BOLD, PLAIN = "\033[1m", "\033[0m"


class EpochTable:
    """Formats one row per epoch, in up to 80 columns; `*` marks an epoch that is the best so far.

    Args:
        monitor: the metric that selects the best epoch, a column of its own.
        mode: 'max' or 'min'.
        epochs: of the whole training; None where nobody knows.
        bold: whether the best epochs are set in bold.
    """

    def __init__(self, monitor: str, mode: str, epochs: int | None, *, bold: bool = False) -> None:
        self.monitor, self.mode, self.epochs, self.bold = monitor, mode, epochs, bold
        names = ["train/loss", "val/loss", "val/accuracy", "val/macro_f1"]
        self.columns = [*names, monitor] if monitor not in names else names
        self._headed = False

    def lines(self, rows: Sequence[Row]) -> list[str]:
        """The line of the last of `rows`, which are all epochs so far, and before the first the titles."""
        row = rows[-1]
        total = f"/{self.epochs}" if self.epochs and self.epochs > 0 else ""
        cells = {
            "epoch": f"{int(row['epoch']) + 1}{total}",
            "lr": f"{row['lr']:.1e}",
            **{name: self._text(name, row) for name in self.columns},
            "seconds": f"{row['seconds']:.1f} s" if row["seconds"] < 100 else f"{row['seconds']:.0f} s",
        }
        titles = {name: TITLES.get(name, name.replace("/", " ")) for name in cells}
        widths = {name: max(len(titles[name]), 7) for name in cells}
        line = "  ".join(f"{text:>{widths[name]}}" for name, text in cells.items())
        line = f"{'*' if self._is_best(rows) else ' '} {line}"
        if self.bold and line.startswith("*"):
            line = f"{BOLD}{line}{PLAIN}"
        if self._headed:
            return [line]
        self._headed = True
        return [f"  {'  '.join(f'{titles[name]:>{widths[name]}}' for name in cells)}", line]

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
    """What prints each epoch: a row of an `EpochTable` on a terminal, the line of `metric_line` elsewhere.

    Rows are not set in bold where NO_COLOR is set (no-color.org).
    """
    if not sys.stdout.isatty():
        return lambda rows: say(metric_line(rows[-1]))
    table = EpochTable(monitor, mode, epochs, bold=not os.environ.get("NO_COLOR"))
    return lambda rows: say("\n".join(table.lines(rows)))
