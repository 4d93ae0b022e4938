"""`optim.lr=auto` against a grid of learning rates, on combinations of network, data and optimiser.

    python benchmarks/learning_rate.py --caltech DIR --dogs DIR --cifar DIR --weights DIR [--seeds 0 1] [--only NAME …]

Each combination is trained with every rate of a grid (two per power of ten) and once with `optim.lr=auto`, with the
same seeds, images and number of epochs. Prints the test accuracy of the best rate of the grid, of `auto`, and their
difference; a line of JSON for each combination.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import imgcls
from imgcls.data.stores.sharing import shared_data

GRIDS = {"adamw": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "sgd": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
QUIET = ["report=false", "debug=off", "export.onnx=false", "quiet=true", "data.batch_size=32"]


def combinations(asked: argparse.Namespace) -> dict[str, tuple[str, list[str]]]:
    """Name to the optimiser and the overrides."""
    caltech = ["data=caltech256", f"data.root={asked.caltech}", "data.image_size=96", "data.resize=110"]
    dogs = ["data=dogbreeds", f"data.root={asked.dogs}", "data.image_size=96", "data.resize=110"]
    cifar = ["data=imagefolder", f"data.root={asked.cifar}", "data.image_size=32", "data.resize=32"]
    digits = ["data=digits", "model.pretrained=false"]

    def lite(number: int) -> list[str]:
        name = f"tf_efficientnet_lite{number}"
        return [f"model.name={name}", f"model.weights={Path(asked.weights) / name}.safetensors"]

    frozen = ["model.freeze=backbone", "trainer.max_epochs=3"]
    tuned = ["trainer.max_epochs=2", "data.image_size=64", "data.resize=73"]
    small = ["model.pretrained=false", "model.name=test_resnet"]
    return {
        "caltech, frozen Lite0, AdamW": ("adamw", [*caltech, *lite(0), *frozen]),
        "caltech, frozen Lite0, SGD": ("sgd", [*caltech, *lite(0), *frozen]),
        "caltech, frozen Lite2, AdamW": ("adamw", [*caltech, *lite(2), *frozen]),
        "dogs, frozen Lite0, AdamW": ("adamw", [*dogs, *lite(0), *frozen]),
        "dogs, frozen Lite2, SGD": ("sgd", [*dogs, *lite(2), *frozen]),
        "caltech, fine-tuned Lite0, AdamW": ("adamw", [*caltech, *lite(0), *tuned]),
        "caltech, fine-tuned Lite0, SGD": ("sgd", [*caltech, *lite(0), *tuned]),
        "digits, small ResNet from scratch, AdamW": ("adamw", [*digits, *small, "trainer.max_epochs=6"]),
        "digits, small ResNet from scratch, SGD": ("sgd", [*digits, *small, "trainer.max_epochs=6"]),
        "CIFAR-10 (2,000), small ResNet from scratch, AdamW": ("adamw", [*cifar, *small, "trainer.max_epochs=6"]),
        "CIFAR-10 (2,000), small ResNet from scratch, SGD": ("sgd", [*cifar, *small, "trainer.max_epochs=6"]),
    }


def accuracy(overrides: list[str], rate: float | str, seed: int) -> tuple[float, float]:
    """Test accuracy of one training, and the rate that it used."""
    with tempfile.TemporaryDirectory() as folder:
        run = imgcls.fit(
            imgcls.compose(
                [*QUIET, *overrides, f"optim.lr={rate}", f"seed={seed}", "data.seed=0", f"run_dir={folder}/run"]
            )
        )
        file = run.folder / "learning_rate.json"
        used = json.loads(file.read_text())["suggestion"] if rate == "auto" else float(rate)
        return run.metrics["test/accuracy"], used


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("caltech", "dogs", "cifar", "weights"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", default=[])
    asked = parser.parse_args()
    print(f"{'combination':52} {'best of the grid':>22} {'auto':>20} {'difference':>10}")
    for name, (optimiser, overrides) in combinations(asked).items():
        if asked.only and not any(part in name for part in asked.only):
            continue
        began = time.monotonic()
        overrides = [*overrides, f"optim={optimiser}"]
        with shared_data():
            grid = {
                rate: statistics.mean(accuracy(overrides, rate, seed)[0] for seed in asked.seeds)
                for rate in GRIDS[optimiser]
            }
            found = [accuracy(overrides, "auto", seed) for seed in asked.seeds]
        best = max(grid, key=grid.__getitem__)
        auto = statistics.mean(value for value, _ in found)
        rates = ", ".join(f"{rate:.1e}" for _, rate in found)
        print(f"{name:52} {grid[best]:8.2%} at {best:7.0e} {auto:8.2%} ({rates}) {100 * (auto - grid[best]):+8.2f}")
        record = {"combination": name, "grid": grid, "auto": auto, "rates": [rate for _, rate in found]}
        print(json.dumps({**record, "seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
