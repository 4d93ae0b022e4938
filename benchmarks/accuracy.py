"""Accuracy after a short training: imgcls's data path against torchvision's, with the same network and optimiser.

    python benchmarks/accuracy.py --photos DIR [--model resnet10t] [--size 64] [--epochs 15] [--seeds 3] [--json FILE]

DIR contains train/<class>, valid/<class> and test/<class>; valid and test are evaluated together, once, at the end.
"usual" is torchvision.datasets.ImageFolder with RandomResizedCrop and RandomHorizontalFlip in a DataLoader, and Resize
and CenterCrop for the test; imgcls gathers batches from its store and augments whole batches. The two alternate for
each seed. Prints a table with the mean, the standard deviation over seeds and the standard error of the difference, and
one line of JSON.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from results import command_line, report
from torch.utils.data import ConcatDataset, DataLoader
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from imgcls.data.augment import Augment
from imgcls.data.crops import RandomResizedCrop
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.sources import Source, Split
from imgcls.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from imgcls.models.optim import AdamW

BATCH = 64
SCALE = (0.35, 1.0)


class MergedTestFolder(ImageFolder):
    """An image folder whose validation and test images form one test set, which reduces the variance."""

    def find(self) -> Source:
        source = super().find()
        parts = [part for part in (source.val, source.test) if part is not None]
        names = tuple(name for part in parts for name in part.names)
        files = tuple(file for part in parts for file in part.files)
        return replace(source, val=None, test=Split(names, np.concatenate([part.labels for part in parts]), files))


def imgcls_way(root: Path, size: int, seed: int) -> dict[str, Any]:
    augment = Augment(RandomResizedCrop(scale=SCALE), flip=0.5)
    data = MergedTestFolder(root, batch_size=BATCH, image_size=size, val_fraction=0, seed=seed, augment=augment)
    data.setup()
    return {"train": data.train_dataloader(), "test": data.test_dataloader(), "classes": data.num_classes}


def usual_way(root: Path, size: int, workers: int) -> dict[str, Any]:
    to_floats = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    bicubic = InterpolationMode.BICUBIC
    crop = v2.RandomResizedCrop(size, SCALE, interpolation=bicubic)
    augmented = v2.Compose([crop, v2.RandomHorizontalFlip(), *to_floats])
    whole = v2.Compose([v2.Resize(round(size / 0.875), bicubic), v2.CenterCrop(size), *to_floats])
    train = datasets.ImageFolder(root / "train", augmented)
    test = ConcatDataset([datasets.ImageFolder(root / name, whole) for name in ("valid", "test")])
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    return {
        "train": DataLoader(train, BATCH, shuffle=True, drop_last=True, **options),
        "test": DataLoader(test, BATCH, **options),
        "classes": len(train.classes),
    }


def train_once(way: dict[str, Any], model: str, epochs: int, seed: int) -> tuple[float, float]:
    """Train once: (test accuracy, seconds)."""
    L.seed_everything(seed, verbose=False)
    classifier = Classifier(create_network(model, way["classes"]), optim=AdamW(lr=2e-3), label_smoothing=0.1, seed=seed)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=epochs, enable_model_summary=False, **quiet)
    began = time.perf_counter()
    trainer.fit(classifier, way["train"])
    return float(trainer.test(classifier, way["test"], verbose=False)[0]["test/accuracy"]), time.perf_counter() - began


def main() -> None:
    """Train both ways with each seed and compare."""
    parser = command_line(__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    found: dict[str, list[float]] = {"usual": [], "imgcls": []}
    seconds: dict[str, list[float]] = {"usual": [], "imgcls": []}
    for seed in range(arguments.seeds):
        ways = {
            "usual": usual_way(arguments.photos, arguments.size, arguments.workers),
            "imgcls": imgcls_way(arguments.photos, arguments.size, seed),
        }
        for name, way in ways.items():
            accuracy, took = train_once(way, arguments.model, arguments.epochs, seed)
            found[name].append(accuracy)
            seconds[name].append(took)
            print(f"seed {seed}  {name:7} {accuracy:7.2%}  {took:6.0f} s", flush=True)
    print(f"\n{'':8}{'accuracy':>10}{'std':>8}{'seconds':>10}")
    for name, accuracies in found.items():
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        print(f"{name:8}{statistics.mean(accuracies):>10.2%}{spread:>8.2%}{statistics.mean(seconds[name]):>10.0f}")
    difference = statistics.mean(found["imgcls"]) - statistics.mean(found["usual"])
    error = (
        sum(statistics.variance(values) / len(values) for values in found.values()) ** 0.5 if arguments.seeds > 1 else 0
    )
    print(f"difference {difference:+.2%}, standard error {error:.2%}")
    result = {**vars(arguments), **found, "seconds": seconds, "difference": difference, "error": error}
    report(result, arguments.json)


if __name__ == "__main__":
    main()
