"""Cross-validation on a frozen backbone against one run, after the features.

    python benchmarks/folds.py --caltech DIR --weights FILE [--model NAME] [--size 96] [--folds 5] [--repeats 3]

DIR holds the classes of Caltech-256 as folders NNN.name. "one run" is `imgcls.fit` with `model.freeze=backbone`,
"folds" the same with `cv.folds`, "ensemble" also with `cv.ensemble=true`; all with their defaults, report and ONNX
included. The first run of each computes the features and is not counted; then they alternate. Prints a table with
seconds of the clock and of the processor, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import imgcls


def measure(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Seconds of one `imgcls.fit`, and its metrics."""
    cfg = imgcls.compose([*overrides, f"run_dir={folder}"])
    clock, processor = time.perf_counter(), time.process_time()
    run = imgcls.fit(cfg)
    return {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor, "metrics": run.metrics}


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caltech", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    base = [
        *("data=caltech256", f"data.root={arguments.caltech}", f"data.image_size={arguments.size}", "quiet=true"),
        *(f"model.name={arguments.model}", f"model.weights={arguments.weights}", "model.freeze=backbone"),
    ]
    folds = f"cv.folds={arguments.folds}"
    kinds = {"one run": [], "folds": [folds], "ensemble": [folds, "cv.ensemble=true"]}
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as work:
        for repeat in range(arguments.repeats + 1):
            for name, options in kinds.items():
                found = measure([*base, *options], Path(work) / f"{name.replace(' ', '-')}-{repeat}")
                measured[name] += [found] if repeat else []
    rows: dict[str, Any] = {}
    for name, found in measured.items():
        times = {kind: statistics.fmean(one[kind] for one in found) for kind in ("clock", "processor")}
        wanted = ("test/accuracy", "test/accuracy_sd", "test/accuracy_low", "test/accuracy_high", "ensemble/accuracy")
        accuracies = {name: found[0]["metrics"][name] for name in wanted if name in found[0]["metrics"]}
        rows[name] = {**times, **accuracies}
    print(f"{'':10} {'clock s':>9} {'CPU s':>9} {'ratio':>7} {'accuracy':>9}")
    for name, row in rows.items():
        row["ratio"] = row["processor"] / rows["one run"]["processor"]
        row["clock_ratio"] = row["clock"] / rows["one run"]["clock"]
        print(
            f"{name:10} {row['clock']:9.2f} {row['processor']:9.2f} {row['ratio']:7.2f} {row['test/accuracy']:9.2%}"
            + (f" ± {row['test/accuracy_sd']:.2%}" if "test/accuracy_sd" in row else "")
            + (f", ensemble {row['ensemble/accuracy']:.2%}" if "ensemble/accuracy" in row else "")
        )
    print(json.dumps({"benchmark": "folds", **vars(arguments), "torch": torch.__version__, "rows": rows}, default=str))


if __name__ == "__main__":
    main()
