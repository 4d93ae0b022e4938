"""The end of the log of a run that did not finish."""

from __future__ import annotations

from imgcls.report.blocks import Blocks, Preformatted
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section

LINES = 40


def _make(run: RunData) -> Blocks:
    file = run.folder / "log.txt"
    if run.status.get("state") not in ("failed", "interrupted") or not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]
    return [Preformatted(f"The last {len(lines)} lines", "\n".join(lines))]


SECTION = Section("Log", _make)
