"""`sweep.html` of a plain multirun of Hydra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from imgcls.report import page
from imgcls.report.blocks import Blocks, Preformatted, Table, Text
from imgcls.sweeps import outcome
from imgcls.sweeps.members import Member, measures, over_seeds, rows, sentence
from imgcls.system.text import duration

MAX_ROWS = 1000  # of the table; sweep.csv has all


def write_page(folder: Path, members: Sequence[Member]) -> Path:
    """Write `sweep.html` of a plain multirun into its folder and return its path."""
    table, means = rows(folder, members), over_seeds(members)
    sections: dict[str, Blocks] = {}
    if means:
        cells = [[str(cell) for cell in row.values()] for row in means]
        sections["Means over seeds"] = [
            Text("Runs that differ in their seed alone; ± is the standard deviation over the seeds."),
            Table(list(means[0]), cells, list(range(len(means[0]) - len(measures(members)) - 1, len(means[0])))),
        ]
    sections["Runs"] = [_linked(folder, table[:MAX_ROWS])]
    files = {"Markdown": "sweep.md", "LaTeX": "sweep.tex"}
    sections["For papers"] = [
        Preformatted(title, (folder / name).read_text(encoding="utf-8")) for title, name in files.items()
    ]
    states = [member.state for member in members]
    numbers = [(f"{state} runs", str(states.count(state))) for state in dict.fromkeys(states)]
    seconds = sum(float(member.metrics.get("seconds", 0)) for member in members)
    numbers.append(("time of all runs", duration(seconds)))
    return page.write_page(folder / "sweep.html", folder.name, sections, sentence=sentence(members), numbers=numbers)


def _linked(folder: Path, table: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of runs, whose first cells link to their reports."""
    head = [name for name in table[0] if name != "folder" and (name != "reason" or any(row["reason"] for row in table))]
    cells = []
    for row in table:
        texts: list[str] = [outcome.cell_text(row[name]) for name in head]
        report = Path(row["folder"]) / "report.html"
        if (folder / report).is_file():
            texts[0] = Markup('<a href="{}">{}</a>').format(report.as_posix(), texts[0])
        cells.append(texts)
    return Table(head, cells, [place for place, name in enumerate(head) if isinstance(table[0][name], int | float)])
