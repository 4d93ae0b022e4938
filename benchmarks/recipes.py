"""Accuracy after a few epochs on a part of CIFAR-10: experiment=cifar10_fast against a plain recipe, on any device.

    python benchmarks/recipes.py --cifar10 DIR [--train 2000] [--test 1000] [--epochs 3] [--seeds 1] [--json FILE]

DIR contains CIFAR-10 in any layout that `data=cifar10` reads. "plain" is `data=cifar10` with a ResNet18 with small stem
from random weights and imgcls's defaults, "cifar10_fast" the recipe with its rates for batches of 128. Both use the
same images equally often, and alternate for each seed. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import imgcls
from imgcls.data.cifar10 import BATCHES, BINARY, Cifar10
from imgcls.data.sources import Split

BATCH = 128
RECIPES = {
    "plain": ["data=cifar10", "model=resnet18", "model.stem=small", "model.pretrained=false"],
    # step length and decay scale with the batch size: the recipe's are for 1,024
    "cifar10_fast": ["experiment=cifar10_fast", f"optim.lr={10.0 * BATCH / 1024}", "optim.weight_decay=0.00166"],
}


def write_some(source: Split, count: int, batches: list[str], folder: Path) -> None:
    """Write the first `count` images of a split in CIFAR-10's binary layout."""
    chosen = np.random.default_rng(0).permutation(len(source))[:count]
    pixels = np.stack([np.asarray(source.open(int(row))) for row in chosen]).transpose(0, 3, 1, 2).reshape(count, -1)
    rows = np.hstack([source.labels[chosen, None].astype(np.uint8), pixels])
    for name, part in zip(batches, np.array_split(rows, len(batches)), strict=True):
        (folder / f"{name}.bin").write_bytes(part.tobytes())


def train_once(root: Path, recipe: str, epochs: int, seed: int) -> dict[str, float]:
    """Train once; return test accuracy and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*RECIPES[recipe], f"data.root={root}", f"data.batch_size={BATCH}", "data.val_fraction=0"]
        overrides += [f"trainer.max_epochs={epochs}", f"seed={seed}", f"run_dir={folder}/run", "debug=off"]
        run = imgcls.fit(imgcls.compose([*overrides, "export.onnx=false"]))
        return {"accuracy": run.metrics["test/accuracy"], "seconds": run.metrics["wall_seconds"]}


def main() -> None:
    """Train both with each seed and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    source = Cifar10(arguments.cifar10, val_fraction=0).source
    assert source.test is not None
    root = Path(tempfile.mkdtemp())
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.recipes.split(",")}
    try:
        (root / BINARY).mkdir()
        for split, count, name in ((source.train, arguments.train, "train"), (source.test, arguments.test, "test")):
            write_some(split, count, BATCHES[name], root / BINARY)
        for seed in range(arguments.seeds):
            for name, rows in found.items():
                rows.append(train_once(root, name, arguments.epochs, seed))
    finally:
        shutil.rmtree(root)
    print(f"{'':14}{'accuracy':>10}{'std':>8}{'seconds':>10}")
    result: dict[str, Any] = {**vars(arguments), "results": found}
    for name, rows in found.items():
        accuracies = [row["accuracy"] for row in rows]
        deviation = statistics.stdev(accuracies) if len(rows) > 1 else 0.0
        seconds = statistics.mean(row["seconds"] for row in rows)
        print(f"{name:14}{statistics.mean(accuracies):>10.2%}{deviation:>8.2%}{seconds:>10.1f}")
    line = json.dumps(result, default=str)
    print(line)
    if arguments.json:
        arguments.json.write_text(line + "\n")


if __name__ == "__main__":
    main()
