"""The report of a run."""

from __future__ import annotations

from pathlib import Path


def write_report(folder: Path) -> Path:
    """Placeholder until the page is there."""
    return folder / "report.html"
