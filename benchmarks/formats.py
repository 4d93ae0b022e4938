"""Formats and precisions of a network side by side, and the int8 server against the float32 server.

    python benchmarks/formats.py [--models resnet18,resnet50,efficientnet_lite0] [--size 224] [--repeats 5]
                                 [--threads 1] [--server] [--requests 400] [--json FILE]

The weights are random: speed and size do not depend on them, and no accuracy is claimed. Every layer is in int8,
without the search for layers that must stay in float32. The repeats alternate, so that a busy machine slows all;
figures are medians, ratios those of the medians. `--server` starts `python -m imgcls.serve` of the first model twice,
in float32 and in int8, and loads them in turn, with 16 clients and at half of what the server answers then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from results import command_line, report
from serving import CLIENTS, jpegs, load_from_outside, server, write_model

TARGETS = {"resnet18": 2.0, "resnet50": 2.0, "efficientnet_lite0": 1.3}
"""Images per second of int8 over float32, both with ONNX Runtime."""
FORMATS = (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8"))
BATCH = 16


def engines(name: str, size: int, threads: int, place: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The engines of a network in each format, by label, and their megabytes."""
    from imgcls import portable
    from imgcls.portable.certificate import size_mb
    from imgcls.portable.description import DESCRIPTION
    from imgcls.portable.exported import Exported
    from imgcls.portable.formats import Source, find_format

    folder = place / name
    write_model(name, size, folder / "model")
    model = portable.load(folder / "model")
    images = np.random.default_rng(0).standard_normal((32, 3, size, size), np.float32)
    source = Source(folder / "model", Exported(model.network).eval(), model.preprocessing, images)
    found: dict[str, Any] = {"torch fp32": model.engine}
    megabytes = {"torch fp32": (folder / "model" / "model.safetensors").stat().st_size / 1e6}
    for form, precision in FORMATS:
        target = folder / "exports" / f"{form}-{precision}"
        target.mkdir(parents=True)
        find_format(form).converter(source, precision).write(target)
        label = f"{form} {precision}"
        megabytes[label] = size_mb(target)
        found[label] = find_format(form).engine(target, threads)
        about = {**model.description, "export": {"format": form, "precision": precision}}
        (target / DESCRIPTION).write_text(json.dumps(about))
    return found, megabytes


def speeds(found: dict[str, Any], size: int, repeats: int) -> dict[str, list[float]]:
    """Images per second in batches of BATCH, of each engine in each repeat."""
    images = np.random.default_rng(0).standard_normal((BATCH, 3, size, size), np.float32)
    rows: dict[str, list[float]] = {label: [] for label in found}
    for engine in found.values():
        engine.outputs(images)
    for _ in range(repeats):
        for label, engine in found.items():
            began = time.perf_counter()
            engine.outputs(images)
            engine.outputs(images)
            rows[label].append(2 * BATCH / (time.perf_counter() - began))
    return rows


def serve(folder: Path, repeats: int, requests: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Answers per second, latencies and memory of the float32 and of the int8 server, which are loaded in turn."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, content in enumerate(jpegs(None, 32)):
        (pictures / f"{number:03}.jpg").write_bytes(content)
    rows: dict[str, list[float]] = {}
    with server(folder / "exports" / "onnx-fp32") as plain, server(folder / "exports" / "onnx-int8") as small:
        ports = {"fp32": plain, "int8": small}
        for port in ports.values():
            load_from_outside(port, 2, 40, pictures)
        before = resident_mb()
        for _ in range(repeats):
            for label, port in ports.items():
                full = load_from_outside(port, CLIENTS, requests, pictures)
                half = load_from_outside(port, CLIENTS, requests, pictures, full["throughput"] / 2)
                rows.setdefault(f"{label}, {CLIENTS} clients, 1/s", []).append(full["throughput"])
                rows.setdefault(f"{label}, half load, p99 / p50", []).append(half["p99"] / half["median"])
        after = resident_mb()
        return rows, {"answered": 2 * 2 * repeats * requests, "MB before": before, "MB after": after}


def resident_mb() -> float:
    """Memory of all servers that run, MB."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"imgcls.serve" in (folder / "cmdline").read_bytes():
                total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    return total


def one_by_one_and_together(engine: Any, size: int) -> float:
    """The largest difference between the probabilities of images alone and in a batch."""
    from imgcls.portable.model import softmax

    images = np.random.default_rng(1).standard_normal((BATCH, 3, size, size), np.float32)
    alone = np.concatenate([engine.outputs(image[None]) for image in images])
    return float(np.abs(softmax(alone) - softmax(engine.outputs(images))).max())


def main() -> None:
    """Measure, and print the figures with their targets."""
    parser = command_line(__doc__)
    parser.add_argument("--models", default=",".join(TARGETS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--requests", type=int, default=400)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.models.split(","):
            found, megabytes = engines(name, arguments.size, arguments.threads, Path(temporary))
            rows = speeds(found, arguments.size, arguments.repeats)
            medians = {label: statistics.median(values) for label, values in rows.items()}
            print(f"\n{name}, {arguments.size} px, batches of {BATCH}, {arguments.threads} threads")
            for label, values in rows.items():
                spread = f"({min(values):.0f}, {max(values):.0f})"
                print(f"{label:16}{medians[label]:8.0f} images/s {spread:14}{megabytes[label]:8.1f} MB")
            ratio = medians["onnx int8"] / medians["onnx fp32"]
            share = megabytes["onnx int8"] / megabytes["onnx fp32"]
            apart = one_by_one_and_together(found["onnx int8"], arguments.size)
            print(
                f"int8 / fp32, onnx: {ratio:.2f} times the images/s (target {TARGETS.get(name)}), {share:.0%} of the MB"
            )
            print(f"int8, one by one against a batch: probabilities within {apart:.1e}")
            results[name] = {"speeds": rows, "megabytes": megabytes, "ratio": ratio, "share": share, "apart": apart}
        if arguments.server:
            first = arguments.models.split(",")[0]
            served, memory = serve(Path(temporary) / first, arguments.repeats, arguments.requests)
            medians = {label: statistics.median(values) for label, values in served.items()}
            for label, values in served.items():
                print(f"{first}, {label:32}{medians[label]:8.2f} ({min(values):.2f}, {max(values):.2f})")
            ratio = medians[f"int8, {CLIENTS} clients, 1/s"] / medians[f"fp32, {CLIENTS} clients, 1/s"]
            print(f"int8 server / fp32 server: {ratio:.2f} times the answers (target 1.8); {memory}")
            results["server"] = {"rows": served, "ratio": ratio, **memory}
    report(results, arguments.json)


if __name__ == "__main__":
    main()
