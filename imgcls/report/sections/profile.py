"""Where the time of the run went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgcls.report import figures
from imgcls.report.blocks import Blocks, Figure, Findings, Table
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section

SPREAD = ("max", "p99", "p95", "p50", "min")


def profile_blocks(profile: Mapping[str, Any], file: str = "") -> Blocks:
    """The content of `profile.json`, with its figure also written as `figures/FILE.png`; empty without any."""
    if not profile:
        return []
    outcomes = profile.get("rules", [])
    rows = [[f"{row['name']}, {row['unit']}", *(f"{row[name]:.4g}" for name in SPREAD)] for row in profile["system"]]
    return [
        *([Findings(outcomes)] if outcomes else []),
        Figure.of(figures.profile_shares(profile), name=file),
        Table(["resource", *SPREAD], rows, range(1, 6)),
    ]


def _make(run: RunData) -> Blocks:
    return profile_blocks(run.json("debug/profile/profile.json"), "profile")


SECTION = Section("Profile", _make)
