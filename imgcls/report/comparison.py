"""Several runs on one page: overlaid curves, and the differences of their configurations and results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.report import figures
from imgcls.report.blocks import Blocks, Figure, Table, Text
from imgcls.report.headline import METRICS, format_with_bounds
from imgcls.report.intervals import difference
from imgcls.report.page import write_page
from imgcls.report.sections.curves import training_objective
from imgcls.runs.provenance import differences, read_configuration
from imgcls.runs.reading import read_history, read_json, read_metrics, read_outputs

SEEDS = ("seed", "data.seed", "data.order_seed")
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
        [label, *(format_with_bounds(name, row) if name in row else "" for row in metrics)]
        for name, label in METRICS.items()
        if any(name in row for row in metrics)
    ]
    objectives = {training_objective(config) for config in configs}
    objective = next(iter(objectives)) if len(objectives) == 1 else "as each run defines it"
    chart = figures.learning_curves(histories, objective=objective)
    paired = compare_predictions(folders, names)
    sections: dict[str, Blocks] = {
        "Learning curves": [Text("Solid lines are validation, dashed lines training."), Figure.of(chart)],
        "Results": [Table(["metric", *names], results)],
        **({"Differences": [Text(" ".join(paired))]} if paired else {}),
        "Configuration": [Table(["option", *names], options) if options else Text("The configurations do not differ.")],
    }
    sentence = " ".join([summarise(folders, names, configs, metrics), *(paired if len(paired) == 1 else [])])
    return write_page(output, f"{len(folders)} runs compared", sections, sentence=sentence)


def summarise(
    folders: Sequence[Path], names: Sequence[str], configs: Sequence[Any], metrics: Sequence[dict[str, Any]]
) -> str:
    """What the results of the runs say, in a sentence or two.

    Runs that differ in their seeds alone are not competitors, but samples of one result: mean and standard deviation.
    Others are compared by validation accuracy, as long as they were validated on the same images.
    """
    metric = "map" if any(name in row for row in metrics for name in ("val/map", "test/map")) else "accuracy"
    val, test = f"val/{metric}", f"test/{metric}"
    changed = {name for config in configs[1:] for name, _, _ in differences(configs[0], config)} - set(IGNORED)
    if changed and changed <= set(SEEDS) and all(val in row for row in metrics):
        spreads = [
            f"{METRICS[name]} {np.mean(column):.2%} ± {np.std(column, ddof=1):.2%}"
            for name in (test, val)
            if len(column := [row[name] for row in metrics if name in row]) == len(metrics)
        ]
        return f"{len(metrics)} seeds of one configuration: {', '.join(spreads)} (mean ± standard deviation)."
    tested = {name: row[test] for name, row in zip(names, metrics, strict=True) if test in row}
    if len({_split(folder, "val") for folder in folders} - {None}) > 1:
        text = "The runs were validated on different images, so their validation accuracies cannot be compared."
        if len(tested) == len(names) and len({_split(folder, "test") for folder in folders}) == 1:
            results = ", ".join(f"{name} {value:.2%}" for name, value in tested.items())
            label = "Accuracies" if metric == "accuracy" else "Mean average precision"
            text += f" {label} on the test images, which are the same: {results}."
        return text
    values = {name: row[val] for name, row in zip(names, metrics, strict=True) if val in row}
    kind = val
    if not values:
        values, kind = tested, test
    if not values:
        return "None of the runs has a result yet."
    best = max(values, key=values.__getitem__)
    text = f"{best} is best, with a {METRICS[kind]} of {values[best]:.2%}"
    others = [name for name, value in tested.items() if best in tested and value > tested[best]]
    if others and kind == val:
        higher = max(others, key=tested.__getitem__)
        text += f"; its {METRICS[test]} is {tested[best]:.2%}, that of {higher} {tested[higher]:.2%}"
    return f"{text}."


def compare_predictions(folders: Sequence[Path], names: Sequence[str]) -> list[str]:
    """A sentence about the test predictions of each run after the first, paired with those of the first.

    Empty where the runs were not tested on the same images.
    """
    if len({_split(folder, "test") for folder in folders}) != 1 or _split(folders[0], "test") is None:
        return []
    outputs = [read_outputs(folder, "test") for folder in folders]
    known = [found for found in outputs if found is not None]
    if any(labels.ndim > 1 for _, labels in known):
        return []
    if len(known) != len(outputs) or not all(np.array_equal(known[0][1], labels) for _, labels in known):
        return []
    (first, labels), *others = known
    return [
        difference(first, logits, labels).sentence(names[0], name)
        for name, (logits, _) in zip(names[1:], others, strict=True)
    ]


def _split(folder: Path, name: str) -> str | None:
    """The fingerprint of a split of the run in `folder`; None if it is not known."""
    split = read_json(folder / "data.json").get("splits", {}).get(name)
    return str(split) if split else None


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
