"""What a section of a run's report is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imgcls.report.blocks import Blocks
from imgcls.report.run_data import RunData


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Args:
        title: of the section; its anchor is the title in lower case, with hyphens.
        make: its content; empty where the run has nothing to show. An error becomes a sentence on the page.
    """

    title: str
    make: Callable[[RunData], Blocks]
