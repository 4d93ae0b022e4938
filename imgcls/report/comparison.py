"""Several runs on one page: overlaid curves, and the differences of their configurations and results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgcls.report import figures
from imgcls.report.page import METRICS, Section, format_metric, write_page
from imgcls.runs.provenance import differences, read_configuration
from imgcls.runs.reading import read_history, read_metrics

IGNORED = ("run_dir", "resume")  # where a run is stored says nothing about what it is


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write the page that compares the runs in `folders` to `output`; return its path."""
    names = _distinct_names(folders)
    histories = {name: read_history(folder) for name, folder in zip(names, folders, strict=True)}
    configs = [read_configuration(folder) for folder in folders]
    metrics = [read_metrics(folder) for folder in folders]
    changed = dict.fromkeys(name for config in configs[1:] for name, _, _ in differences(configs[0], config))
    options = [[name, *(_option(config, name) for config in configs)] for name in changed if name not in IGNORED]
    results = [
        [label, *(format_metric(name, row[name]) if name in row else "" for row in metrics)]
        for name, label in METRICS.items()
        if any(name in row for row in metrics)
    ]
    svgs = figures.learning_curves(histories).as_svgs()
    sections: dict[str, Section] = {
        "Learning curves": {"text": "Solid lines are validation, dashed lines training.", "svgs": svgs},
        "Results": {"table": {"head": ["metric", *names], "rows": results}},
        "Configuration": {"table": {"head": ["option", *names], "rows": options}}
        if options
        else {"text": "The configurations do not differ."},
    }
    return write_page(output, f"{len(folders)} runs compared", sections, sentence=_name_best(names, metrics))


def _name_best(names: Sequence[str], metrics: Sequence[dict[str, Any]]) -> str:
    for metric in ("val/accuracy", "test/accuracy"):
        values = [(row[metric], name) for row, name in zip(metrics, names, strict=True) if metric in row]
        if values:
            value, name = max(values)
            return f"{name} is best, with a {METRICS[metric]} of {value:.2%}."
    return "None of the runs has a result yet."


def _option(config: Any, name: str) -> str:
    for part in name.split("."):
        if not isinstance(config, dict) or part not in config:
            return ""
        config = config[part]
    if isinstance(config, dict):  # one of the runs has no such group
        return f"{len(config)} options"
    return "null" if config is None else str(config)


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    return [str(folder) if names.count(name) > 1 else name for folder, name in zip(folders, names, strict=True)]
