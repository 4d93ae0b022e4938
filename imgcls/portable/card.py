"""The model card of a portable model, in Markdown."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imgcls.images.preprocessing import sides
from imgcls.portable.conformal import ClassSets
from imgcls.portable.novelty import Novelty
from imgcls.portable.parity import describe_difference

TASK = "image-classification"
HUB_METRICS = {"test/accuracy": "accuracy", "test/macro_f1": "f1", "test/map": "mean_average_precision"}
"""The metrics in the front matter, with the names that the hub has for them."""
MAX_CLASSES = 100  # on the card
MAX_NAMED = 5  # classes in a sentence
WEAK_RECALL = 0.8
FEW_IMAGES = 20  # of a class in the test: 19 of 20 right has a 95 % interval from 76 to 99 %


def model_card(description: Mapping[str, Any], repo: str | None = None, library: str = "imgcls") -> str:
    """What the model is, how good it is, where its limits are and how to use it, with the front matter of the hub.

    Args:
        description: the content of `model.json`.
        repo: where it is on the Hugging Face hub, as user/name; None: nowhere.
        library: what loads it with one call there, `timm` or `imgcls`.
    """
    names, parity = description["class_names"], description["parity"]
    class_list = ", ".join(_literal(name) for name in names[:20])
    class_list += f", … ({len(names) - 20} more)" if len(names) > 20 else ""
    preprocessing, architecture = description["preprocessing"], description["architecture"]
    metrics = "\n".join(_metric_rows(description["metrics"]))
    return f"""{_front_matter(description, repo, library)}
# {repo or architecture["name"]}, {len(names)} classes

An image classifier trained with imgcls {description["versions"]["imgcls"]}{_network(description)}.

Classes: {class_list}

## How to use it

{_usage(repo, library)}
Images are rotated upright and converted to RGB, {_fit(preprocessing)}, and normalised with mean
{preprocessing["mean"]} and standard deviation {preprocessing["std"]}.

## How good it is

| metric | value | 95 % interval |
|---|---|---|
{metrics}

{_origin_of_metrics(description.get("added", {}))}
{_class_section(description.get("per_class") or [])}{_calibration_section(description.get("calibration", {}))}\
{_doubt_section(description)}{_parity_section(parity)}{_export_section(description.get("export"))}{_data_section(description)}
## Limits

{_limits(description)}

## Licence

{_licence(description.get("license"))}
"""


def _front_matter(description: Mapping[str, Any], repo: str | None, library: str) -> str:
    """What the hub reads: YAML, each value of which is written as JSON, which is the same there."""
    metrics, data = description["metrics"], description.get("data") or {}
    measured = [
        {"type": kind, "name": name, "value": round(metrics[name], 6)}
        for name, kind in HUB_METRICS.items()
        if name in metrics
    ]
    dataset = {"name": data.get("name") or "images", "type": data.get("hub") or data.get("name") or "images"}
    result = {"task": {"type": TASK}, "dataset": {**dataset, "split": "test"}, "metrics": measured}
    entries: dict[str, Any] = {
        "license": description.get("license"),
        "library_name": library,
        "pipeline_tag": TASK,
        "tags": [TASK, "imgcls", *(["timm"] if library != "timm" else []), "pytorch"],
        "datasets": [data["hub"]] if data.get("hub") else None,
        "metrics": list(dict.fromkeys(entry["type"] for entry in measured)) or None,
        "model-index": [{"name": repo or description["architecture"]["name"], "results": [result]}]
        if measured
        else None,
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=True)}" for name, value in entries.items() if value]
    return "\n".join(["---", *lines, "---", ""])


def _network(description: Mapping[str, Any]) -> str:
    """The network and what it started from, as a part of a sentence."""
    start, name = description.get("start") or {}, description["architecture"]["name"]
    starts = {"none": "random weights", "pretrained": f"timm's weights of `{start.get('name')}`"}
    return f": `{name}`" + (f", from {starts.get(start['weights'], 'other weights')}" if start else "")


def _usage(repo: str | None, library: str) -> str:
    place = f"hf-hub:{repo}" if repo else "path/to/this/folder"
    text = f"""```bash
imgcls predict run={place} picture.jpg
imgcls serve run={place}
```

```python
from imgcls import portable

model = portable.load("{place}")
model.top(["picture.jpg"])
```
"""
    if repo is None or library != "timm":
        return text
    return f"""{text}
timm loads the same network, without the temperature and the preprocessing:

```python
import timm

model = timm.create_model("{place}", pretrained=True)
```
"""


def _class_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results of each class, weakest first where they are too many."""
    measures = [name for name in ("precision", "recall", "f1", "average_precision") if any(name in row for row in rows)]
    if not measures:
        return ""
    last = measures[-1] if "recall" not in measures else "recall"
    shown = sorted(rows, key=lambda row: row.get(last, math.inf))[:MAX_CLASSES] if len(rows) > MAX_CLASSES else rows
    lines = [
        "| class | test images | " + " | ".join(name.replace("_", " ") for name in measures) + " |",
        "|---" * (len(measures) + 2) + "|",
    ]
    for row in shown:
        cells = [f"{row[name]:.4f}" if name in row else "" for name in measures]
        lines.append(f"| {_literal(row['class'])} | {row['images']} | {' | '.join(cells)} |")
    title = "Each class" if len(shown) == len(rows) else f"The {MAX_CLASSES} weakest of {len(rows)} classes"
    return "\n" + "\n".join([f"{title}:", "", *lines]) + "\n"


def _data_section(description: Mapping[str, Any]) -> str:
    data = description.get("data") or {}
    images = data.get("images") or {}
    if not images:
        return ""
    titles = {"train": "training", "val": "validation", "test": "test"}
    counts = [f"| {titles.get(name, name)} | {count:,} |" for name, count in images.items()]
    head = [f"Data set: {_literal(data['name'])}", "", "| split | images |", "|---|---|"]
    return "\n## Data\n\n" + "\n".join([*head, *counts]) + "\n"


def _limits(description: Mapping[str, Any]) -> str:
    """What the model cannot do, of what is known of it."""
    several = description.get("thresholds") is not None
    lines = [
        "It answers with labels of its list only, whatever the image shows."
        if several
        else "It answers with one of its classes, whatever the image shows"
        + (", but says which images are unlike those it was trained on." if description.get("novelty") else "."),
        "The metrics hold for images like the test images. From other cameras, places or times expect lower ones, and "
        "measure them: `imgcls evaluate run=… data.root=DIR`.",
    ]
    rows = [row for row in description.get("per_class") or [] if "recall" in row]
    weak = sorted((row for row in rows if row["recall"] < WEAK_RECALL), key=lambda row: row["recall"])[:MAX_NAMED]
    if weak:
        named = ", ".join(f"{_literal(row['class'])} ({row['recall']:.0%})" for row in weak)
        lines.append(f"Of these classes it finds the fewest images: {named}.")
    few = [row for row in rows if row["images"] < FEW_IMAGES]
    if few:
        named = ", ".join(_literal(row["class"]) for row in few[:MAX_NAMED])
        more = f" and {len(few) - MAX_NAMED} more classes" if few[MAX_NAMED:] else ""
        lines.append(f"The results of {named}{more} are of fewer than {FEW_IMAGES} test images each, and so uncertain.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(name: str | None) -> str:
    if name is None:
        return "None is given. Those of the weights that the training started from, and of the images, may bind you."
    return f"{_literal(name)}. Those of the weights that the training started from, and of the images, may add to it."


def _fit(preprocessing: Mapping[str, Any]) -> str:
    """How images become the model's input, as a part of a sentence."""
    height, width = sides(preprocessing["image_size"])
    size = f"{height} px square" if height == width else f"{height} x {width} px rectangle (height x width)"
    how = {
        "crop": f"their shorter side resized to {preprocessing['resize']} px, and cut to the central {size}",
        "pad": f"resized to fit into a {size} with a border of the colour {preprocessing['pad_colour']}",
        "squash": f"resized to a {size} whatever their aspect ratio",
    }
    return f"{how[preprocessing['fit']]} ({preprocessing['interpolation']})"


def _origin_of_metrics(added: Mapping[str, int]) -> str:
    if not added:
        selected = "The `val/` metrics selected this epoch of the training"
        return f"{selected}; the `test/` metrics were measured once, at the end."
    classes = ", ".join(f"{_literal(name)} ({count} image{'s' * (count != 1)})" for name, count in added.items())
    return (
        f"Classes that were added after the training: {classes}. The model was not tested with them, and its "
        "temperature is that of the others."
    )


def _metric_rows(metrics: Mapping[str, float]) -> Iterator[str]:
    for name, value in metrics.items():
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        if low is not None and high is not None:
            yield f"| {name} | {value:.4f} | {low:.4f} to {high:.4f} |"
        elif name.rpartition("_")[0] not in metrics or not name.endswith(("_low", "_high")):
            yield f"| {name} | {value:.4f} | |"


def _literal(text: str) -> str:
    """`text` such that Markdown shows it as it is, on one line and without HTML of its own."""
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _calibration_section(calibration: Mapping[str, Any]) -> str:
    if not calibration:
        return ""
    rows = [
        f"| {split}/{name} | {before:.4f} | {after:.4f} |"
        for split, values in calibration["effect"].items()
        for name, (before, after) in values.items()
    ]
    head = ["| metric | without | with temperature |", "|---|---|---|"]
    table = "".join(f"\n{line}" for line in [*head, *rows]) if rows else ""
    return f"""
The logits are divided by the temperature {calibration["temperature"]:.4g}, fitted on {calibration["images"]} validation
images, so that the confidence can be believed: the model's probabilities include it, the `loss` and `ece` above do not.
{table}
"""


def _doubt_section(description: Mapping[str, Any]) -> str:
    """The sets of classes and the unknown images, of a model that has them."""
    sets, novelty = description.get("sets"), description.get("novelty")
    lines = [str(ClassSets.from_dict(sets))] if sets else []
    lines += [str(Novelty.from_dict(novelty, np.empty((0, 0))))] if novelty else []
    return "".join(f"\n{line}\n" for line in lines)


def _export_section(export: Mapping[str, Any] | None) -> str:
    """What the certificate of an exported model says."""
    if not export:
        return ""
    found, kept = export["certificate"], export["float32_layers"]
    stay = f" Of {export['layers']} layers these stay in float32: {', '.join(map(_literal, kept))}." if kept else ""
    return f"""
This is the model as {export["format"]} in {export["precision"]}.{stay} Beside the float32 network of torch, on
{found["images"]} validation images and on {found["machine"]}:

| | float32, torch | {export["precision"]}, {export["format"]} |
|---|---|---|
| accuracy | {found["accuracy_before"]:.2%} | {found["accuracy"]:.2%} |
| one image | {found["latency_ms_before"]:.1f} ms | {found["latency_ms"]:.1f} ms |
| images per second | {found["images_per_second_before"]:.0f} | {found["images_per_second"]:.0f} |
| size | {found["megabytes_before"]:.1f} MB | {found["megabytes"]:.1f} MB |

{found["same_class"]:.2%} of the images have the same most likely class; probabilities differ by up to
{found["difference"]:.2g}.
{_graph_paragraph(export.get("graph"))}"""


def _graph_paragraph(graph: Mapping[str, Any] | None) -> str:
    """How well a preprocessing in the graph agrees with that of Python."""
    if not graph:
        return ""
    return f"""
The file takes decoded images of any size, `pixels`: uint8 (N, height, width, channels), and returns `probabilities`. On
{graph["pictures"]} validation images {graph["agreement"]:.2%} have the class that preprocessing with Pillow gives;
probabilities differ by up to {graph["difference"]:.2g}.
"""


def _parity_section(parity: Mapping[str, Mapping[str, Any]]) -> str:
    files = {"safetensors": "`model.safetensors`", "onnx": "`model.onnx`"}
    lines = [
        f"{files[name]} was compared with the trained network on {values['pictures']} validation images: the same most "
        f"likely class for {values['agreement']:.2%}, {describe_difference(values['difference'])}."
        for name, values in parity.items()
    ]
    return "\n" + "\n".join(lines) + "\n" if lines else ""
