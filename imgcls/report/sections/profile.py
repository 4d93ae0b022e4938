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
    return [
        *([Findings(outcomes)] if outcomes else []),
        Figure.of(figures.profile_shares(profile), name=file),
        Table(["resource", *SPREAD], [_row(resource) for resource in profile["system"]], range(1, 6)),
    ]


def _row(resource: Mapping[str, Any]) -> list[str]:
    unit, size = ("MB/s", 1e6) if resource["unit"] == "bytes/s" else (resource["unit"], 1)
    return [f"{resource['name']}, {unit}", *(f"{round(resource[name] / size, 3):.4g}" for name in SPREAD)]


def _make(run: RunData) -> Blocks:
    return profile_blocks(run.json("debug/profile/profile.json"), "profile")


SECTION = Section("Profile", _make)
