"""What a plain multirun of Hydra leaves: a table, `sweep.csv`, `sweep.html`, and the means over seeds.

`-m seed=0,1,2 model=resnet18,resnet50` runs every combination. Runs that differ in `seed` alone are summed up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from imgcls.sweeps.members import Member, over_seeds, read_members, rows, sentence
from imgcls.sweeps.outcome import cell_text, relative
from imgcls.system.files import atomic_write_text
from imgcls.system.tables import aligned, as_csv

MAX_ROWS = 40  # of the table on the terminal; sweep.csv has all

_begun: list[Path] = []


class Multirun(Callback):
    """Remembers the folder of a multirun that is no search; `conclude` writes what it has found."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra before the first run."""
        if "imgcls" not in config.hydra.sweeper._target_:
            _begun.append(Path(str(config.hydra.sweep.dir)))


def conclude() -> None:
    """Write and print what the multirun of this process has found, if there was one with more than one run."""
    while _begun:
        folder = _begun.pop()
        members = read_members(folder)
        if len(members) > 1 and any(member.metrics for member in members):
            write(folder, members)
            print(summary(folder, members), flush=True)


def write(folder: Path, members: Sequence[Member]) -> None:
    """Write `sweep.csv`, `sweep.html`, and the table of the means, or else of the runs, as `.md` and `.tex`."""
    from imgcls.sweeps.multirun_page import write_page  # which loads matplotlib

    table = rows(folder, members)
    atomic_write_text(folder / "sweep.csv", as_csv(table))
    short = over_seeds(members) or [_cells(row) for row in table]
    atomic_write_text(folder / "sweep.md", as_markdown(short))
    atomic_write_text(folder / "sweep.tex", as_latex(short))
    write_page(folder, members)


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a run as texts, without its folder and an empty reason."""
    hidden = ("folder", *(["reason"] if not row["reason"] else []))
    return {name: cell_text(value) for name, value in row.items() if name not in hidden}


def as_markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """`table` as a table of Markdown."""
    head = list(dict.fromkeys(name for row in table for name in row))
    lines = [head, ["---"] * len(head), *([str(row.get(name, "")) for name in head] for row in table)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def as_latex(table: Sequence[Mapping[str, Any]]) -> str:
    """`table` as a tabular of LaTeX, for the package booktabs."""
    head = list(dict.fromkeys(name for row in table for name in row))
    body = [" & ".join(_latex(str(row.get(name, ""))) for name in head) + r" \\" for row in table]
    columns = "l" * len(head)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(_latex, head)) + r" \\", r"\midrule"]
    return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}", ""])


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(mark, f"\\{mark}" if mark in "&%$#_{}" else mark) for mark in text)


def summary(folder: Path, members: Sequence[Member]) -> str:
    """The runs as a table, the means over seeds, and where the files are."""
    table = [_cells(row) for row in rows(folder, members)]
    lines = ["", aligned(table[:MAX_ROWS])]
    if len(table) > MAX_ROWS:
        lines.append(f"… and {len(table) - MAX_ROWS} more in sweep.csv")
    if means := over_seeds(members):
        lines += ["", aligned(means)]
    lines += ["", sentence(members)]
    for label, name in (("table", "sweep.csv"), ("report", "sweep.html"), ("for papers", "sweep.md, sweep.tex")):
        lines.append(f"{label:12}{relative(folder / name)}")
    return "\n".join(lines)
