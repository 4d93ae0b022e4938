"""What the rules about the training found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imgcls.report.blocks import Blocks, Findings
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section


def findings(outcomes: Sequence[Mapping[str, Any]]) -> Blocks:
    """The findings of outcomes as in `rules.json`; empty without any."""
    return [Findings(outcomes)] if outcomes else []


def _make(run: RunData) -> Blocks:
    return findings(run.json("debug/rules.json"))


SECTION = Section("Rules", _make)
