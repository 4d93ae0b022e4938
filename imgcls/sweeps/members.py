"""The runs of a plain multirun of Hydra as rows, and the means of those that differ in their seed alone."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.models.choices import VALIDATION_METRICS
from imgcls.runs.folds import Spread
from imgcls.runs.provenance import read_configuration, read_overrides
from imgcls.runs.reading import read_metrics, read_status

SEED = "seed"
MEASURES = ("test/accuracy", "test/map", "test/macro_f1", "test/loss")
FACTS = ("epochs", "seconds")
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Member:
    """A run of a multirun.

    Args:
        folder: its run folder.
        values: the overrides in which it differs from other runs, by name.
        state: of `status.json`.
        reason: why it failed.
        metrics: its final metrics.
        monitor: the validation metric that chose its best epoch.
    """

    folder: Path
    values: Mapping[str, str]
    state: str
    reason: str
    metrics: Mapping[str, Any]
    monitor: str


def read_members(folder: Path) -> list[Member]:
    """The runs in the folder of a multirun, in their order."""
    places = sorted(folder.glob("*/overrides.yaml"), key=lambda file: (len(file.parent.name), file.parent.name))
    given = [dict(text.lstrip("+~").partition("=")[::2] for text in read_overrides(file.parent)) for file in places]
    names = dict.fromkeys(name for values in given for name in values)
    differing = [name for name in names if name != "run_dir" and len({values.get(name) for values in given}) > 1]
    members = []
    for file, values in zip(places, given, strict=True):
        run, status = file.parent, read_status(file.parent)
        config = read_configuration(run)
        members.append(
            Member(
                run,
                {name: values.get(name, "") for name in differing},
                str(status.get("state", "not begun")),
                str(status.get("reason") or ""),
                read_metrics(run),
                str((config.get("checkpoint") or {}).get("monitor", "val/accuracy")),
            )
        )
    return members


def measures(members: Sequence[Member]) -> list[str]:
    """The metrics that are shown: those that chose the epochs, and of the test."""
    wanted = dict.fromkeys([*(member.monitor for member in members), *MEASURES])
    return [name for name in wanted if any(name in member.metrics for member in members)]


def rows(folder: Path, members: Sequence[Member]) -> list[dict[str, Any]]:
    """One row per run, as in `sweep.csv`."""
    shown = measures(members)
    return [
        {"run": member.folder.name, "state": member.state, **member.values}
        | {name: member.metrics.get(name, "") for name in (*shown, *FACTS)}
        | {"reason": member.reason, "folder": os.path.relpath(member.folder, folder)}
        for member in members
    ]


def over_seeds(members: Sequence[Member]) -> list[dict[str, Any]]:
    """A row per configuration with its number of seeds and the mean ± standard deviation of each metric.

    Empty if no two finished runs differ in their seed alone.
    """
    groups = _by_configuration([member for member in members if member.metrics])
    if not any(group[1:] for group in groups.values()):
        return []
    shown = measures(members)
    table = []
    for key, group in groups.items():
        values = {name: [member.metrics[name] for member in group if name in member.metrics] for name in shown}
        cells = {name: _spread(name, found) for name, found in values.items()}
        table.append({**dict(key), "seeds": len(group), **cells})
    return table


def _spread(name: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    text = Spread(name, tuple(map(float, values))).text
    return text if len(values) > 1 else f"{text.partition(' ±')[0]}{' %' if text.endswith('%') else ''}"


def best_first(members: Sequence[Member]) -> list[Member]:
    """The runs with metrics, those with the best value of the metric that chose their epoch first."""

    def cost(member: Member) -> float:
        value = float(member.metrics.get(member.monitor, float("nan")))
        return -value if VALIDATION_METRICS.get(member.monitor, "max") == "max" else value

    found = [member for member in members if member.monitor in member.metrics]
    return sorted(found, key=lambda member: (cost(member) != cost(member), cost(member)))


def sentence(members: Sequence[Member]) -> str:
    """The best configuration: by its mean over the seeds, or a single run."""
    best = best_first(members)
    if not best:
        return f"None of {len(members)} runs has a result."
    groups = _by_configuration(best)
    if not any(group[1:] for group in groups.values()):
        first = best[0]
        options = " ".join(f"{name}={value}" for name, value in first.values.items())
        return f"Run {first.folder.name} is best: {first.monitor} {first.metrics[first.monitor]:.5g} with {options}."

    def mean(group: Sequence[Member]) -> Member:
        metrics = {group[0].monitor: statistics.fmean(member.metrics[group[0].monitor] for member in group)}
        return Member(group[0].folder, group[0].values, "", "", metrics, group[0].monitor)

    winner = best_first([mean(group) for group in groups.values()])[0]
    [key] = _by_configuration([winner])
    values = [float(member.metrics[winner.monitor]) for member in groups[key]]
    text = _spread(winner.monitor, values)
    options = " ".join(f"{name}={value}" for name, value in key)
    verdict = f"{options} is best:" if len(groups) > 1 else "The configuration has"
    return f"{verdict} {winner.monitor} {text}, the mean of {len(values)} seeds."


def _by_configuration(members: Sequence[Member]) -> dict[Key, list[Member]]:
    """The runs of each configuration, by the values in which configurations differ; the seed is none."""
    groups: dict[Key, list[Member]] = {}
    for member in members:
        key = tuple((name, value) for name, value in member.values.items() if name != SEED)
        groups.setdefault(key, []).append(member)
    return groups
