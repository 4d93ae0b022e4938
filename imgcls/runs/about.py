"""What the model card tells of a run besides its metrics: its data, the results per class, the licence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.runs.provenance import read_configuration
from imgcls.runs.reading import read_json, read_table

MAX_CLASSES = 1000  # whose results are part of a model: a hundred bytes each
MEASURES = ("precision", "recall", "f1", "average_precision")
HUGGINGFACE = "imgcls.data.huggingface.HuggingFace"


def data_name(config: Mapping[str, Any]) -> str:
    """What people call the data set of this configuration: the name of its folder, or of its class; '' if unknown."""
    data = config.get("data") or {}
    table = str(data.get("table") or "")
    place = str(data.get("root") or table.rpartition("/")[0] or table or data.get("name") or "").rstrip("/")
    return place.rpartition("/")[2] or str(data.get("_target_") or "").rpartition(".")[2]


def read_about(folder: Path) -> dict[str, Any]:
    """Fields of `model.json` that describe the run in `folder`, as far as it has them.

    - `license`: of the model, from `export.license`.
    - `data`: its `name`, the name on the `hub` if it is from there, and the number of `images` of each split.
    - `start`: `name` and `weights` (pretrained, none, or another file) of the network before the training.
    - `per_class`: of the test images of each class: `class`, `images`, and precision, recall and so on.
    """
    config = read_configuration(folder) if (folder / "config.yaml").is_file() else {}
    model, data = config.get("model") or {}, config.get("data") or {}
    splits = read_json(folder / "data.json").get("splits") or {}
    hub = data.get("name") if data.get("_target_") == HUGGINGFACE else None
    weights = "other weights" if model.get("weights") else "pretrained" if model.get("pretrained") else "none"
    rows = read_table(folder / "per_class.csv")
    found = {
        "license": (config.get("export") or {}).get("license"),
        "data": {
            "name": data_name(config),
            **({"hub": hub} if hub else {}),
            "images": {name: count for name, (count, *_) in splits.items()},
        },
        "start": {"name": model["name"], "weights": weights} if model.get("name") else None,
        "per_class": [_measured(row) for row in rows] if len(rows) <= MAX_CLASSES else [],
    }
    return {name: value for name, value in found.items() if value} if config else {}


def _measured(row: Mapping[str, str]) -> dict[str, Any]:
    measures = {name: float(row[name]) for name in MEASURES if row.get(name)}
    return {"class": row["class"], "images": int(row["pictures"]), **measures}
