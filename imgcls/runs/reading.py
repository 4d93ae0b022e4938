"""Reads the files of a run folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.errors import UserError, first_line
from imgcls.system.tables import cell_text


def read_status(folder: Path) -> dict[str, Any]:
    """The content of `status.json`; empty if the folder holds no run."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise UserError(
            f"{folder / 'status.json'} is damaged: {error}. Remove the folder, or choose another one."
        ) from error


Rows = list[dict[str, str]]


def read_table(file: Path) -> Rows:
    """The rows of a CSV file; empty if there is no file."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as text:
        header, *rows = [[cell_text(cell) for cell in row] for row in csv.reader(text) if row] or [[]]
        return [dict(zip(header, row, strict=False)) for row in rows]


def class_names(folder: Path) -> list[str]:
    """The classes of the test, in the order of the logits; empty if there was no test."""
    return [row["class"] for row in read_table(folder / "per_class.csv")]


def read_steps(folder: Path) -> Mapping[str, np.ndarray]:
    """`loss` and `rate` of every optimiser step, float64 (steps,); empty if the run was not watched."""
    return join_steps(folder / "debug") if step_files(folder / "debug") else {}


def step_files(folder: Path) -> list[Path]:
    """The files in `folder`, the `debug` of a run, that hold the steps, in their order."""
    return sorted(folder.glob("steps*.npz"))


def join_steps(folder: Path) -> dict[str, np.ndarray]:
    """`loss` and `rate` in the `step_files` of `folder`, of which there are some, float64 (steps,)."""
    columns: dict[str, list[np.ndarray]] = {"loss": [], "rate": []}
    for file in step_files(folder):
        with np.load(file, allow_pickle=False) as steps:
            for name, parts in columns.items():
                parts.append(steps[name])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def read_json(file: Path) -> Any:
    """The content of a JSON file; an empty dictionary if there is no file. Raises UserError if it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} is damaged: {first_line(error)}.") from error


def read_origin(folder: Path) -> dict[str, str]:
    """The name of the `run`, the `commit` of the code if it was in git, and when it was `trained`."""
    git = read_json(folder / "environment.json").get("git", {})
    commit = git.get("commit", "") + (" with changes" if git.get("changed") == "yes" else "")
    found = {"run": folder.resolve().name, "commit": commit, "trained": read_status(folder).get("started", "")}
    return {name: value for name, value in found.items() if value}


def read_metrics(folder: Path) -> dict[str, Any]:
    """The final metrics, `best_epoch` counted from 1; empty before the run has finished."""
    metrics: dict[str, Any] = read_json(folder / "metrics.json")
    first = next(iter(read_table(folder / "metrics.csv")), {})
    if "best_epoch" in metrics and first.get("epoch") == "0":  # a run of an earlier version
        metrics["best_epoch"] += 1
    return metrics


def read_predictions(folder: Path) -> Rows:
    """A row per test image; empty if there was no test."""
    return read_table(folder / "predictions.csv")


def read_outputs(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Logits, float32 (N, C), and labels, int64 (N,), of the `val` or `test` images; None if they are not stored.

    With several labels these are uint8 (N, C).
    """
    logits, labels = folder / f"{split}_logits.npy", folder / f"{split}_labels.npy"
    if not logits.is_file():
        return None
    if labels.is_file():
        return np.load(logits, allow_pickle=False), np.load(labels, allow_pickle=False)
    index = {name: index for index, name in enumerate(class_names(folder))}  # a run of an earlier version
    places = [index[row["label"]] for row in read_predictions(folder)] if split == "test" else []
    return (np.load(logits, allow_pickle=False), np.array(places)) if places else None


def read_history(folder: Path) -> list[dict[str, float]]:
    """The metrics of each epoch, counted from 1."""
    rows = read_table(folder / "metrics.csv")
    return from_one([{name: float(value) for name, value in row.items() if value} for row in rows])


def from_one(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of each epoch; runs of earlier versions counted from 0."""
    if rows and rows[0].get("epoch") == 0:
        return [{**row, "epoch": row["epoch"] + 1} for row in rows]
    return rows
