"""Several runs on one page: curves over each other, what differs in their configuration and their results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgcls.report import figures
from imgcls.report.page import SHOWN, number, render
from imgcls.runs.provenance import differences, stored_configuration
from imgcls.runs.reading import read_history, read_metrics
from imgcls.system.files import atomic_write_text

NOT_TOLD = ("run_dir", "resume")  # where a run is says nothing about what it is


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write the page that compares the runs in `folders` to `output`; return its path."""
    names = _distinct(folders)
    configs = [stored_configuration(folder) for folder in folders]
    metrics = [read_metrics(folder) for folder in folders]
    changed = dict.fromkeys(name for config in configs[1:] for name, _, _ in differences(configs[0], config))
    options = [[name, *(_option(config, name) for config in configs)] for name in changed if name not in NOT_TOLD]
    results = [
        [label, *(number(name, one[name]) if name in one else "" for one in metrics)]
        for name, label in SHOWN.items()
        if any(name in one for one in metrics)
    ]
    histories = {name: read_history(folder) for name, folder in zip(names, folders, strict=True)}
    page = render(
        "comparison.html.j2",
        runs=names,
        sentence=_best(names, metrics),
        svgs=figures.learning_curves(histories).as_svgs(),
        tables=[("Results", results), ("Configuration", options)],
    )
    atomic_write_text(output, page)
    return output


def _best(names: Sequence[str], metrics: Sequence[dict[str, Any]]) -> str:
    for metric in ("val/accuracy", "test/accuracy"):
        found = [(one[metric], name) for one, name in zip(metrics, names, strict=True) if metric in one]
        if found:
            value, name = max(found)
            part = "validation" if metric.startswith("val") else "test"
            return f"{name} is best: {value:.2%} of its {part} pictures are recognised."
    return "None of the runs has a result yet."


def _option(config: Any, name: str) -> str:
    for part in name.split("."):
        if not isinstance(config, dict) or part not in config:
            return ""
        config = config[part]
    if isinstance(config, dict):  # one of the runs has no such group
        return f"{len(config)} options"
    return "null" if config is None else str(config)


def _distinct(folders: Sequence[Path]) -> list[str]:
    short = [folder.resolve().name for folder in folders]
    return [str(folder) if short.count(name) > 1 else name for folder, name in zip(folders, short, strict=True)]
