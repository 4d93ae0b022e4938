"""The runs that were averaged into this one."""

from __future__ import annotations

from imgcls.report.blocks import Blocks, Table, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section


def _make(run: RunData) -> Blocks:
    soup = run.json("soup.json")
    if not soup:
        return []
    rows = [
        [member["run"], f"{member['score']:.4g}", "averaged" if member["averaged"] else "left out"]
        for member in soup["members"]
    ]
    text = f"The weights of the averaged runs became one model; its {soup['monitor']} is {soup['score']:.4g}."
    return [Text(text), Table(["run", soup["monitor"], "weights"], rows, [1])]


SECTION = Section("Soup", _make)
