"""A linear head on a frozen backbone: features computed once against the loop that runs the backbone in every epoch.

    python benchmarks/features.py [--photos DIR] [--model resnet50] [--epochs 10] [--limit 160] [--json FILE]

DIR contains train/<class> and valid/<class> (or val/<class>); without it, photographs are generated. "usual" is
torchvision's ImageFolder with Resize, CenterCrop and Normalize in a DataLoader, and a frozen backbone in evaluation
mode under no_grad in front of a linear head; imgcls is `imgcls.fit` with `model.freeze=backbone`: its complete training
time, including checkpoints and validation. Both use the same images without augmentation, and the same weights: random
ones, or those of --weights. The two alternate. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from results import command_line, report
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import InterpolationMode, v2

import imgcls
from imgcls.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from imgcls.models.backbones import create_network
from imgcls.models.network import Network
from imgcls.models.weights import load_weights

BATCH = 32


def write_images(photos: Path | None, folder: Path, limit: int) -> Path:
    """Write `limit` training and half as many validation images of up to ten classes as image folders."""
    for split, count in (("train", limit), ("val", limit // 2)):
        for number in range(10):
            target = folder / split / f"class{number}"
            target.mkdir(parents=True)
            for position in range(count // 10):
                if photos is None:
                    noise = torch.randint(0, 256, (40 + number * 3, 50, 3), dtype=torch.uint8).numpy()
                    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(
                        target / f"{position}.jpg", quality=90
                    )
        if photos is not None:
            source = next(place for name in (split, "valid") if (place := photos / name).is_dir())
            for number, place in enumerate(sorted(one for one in source.iterdir() if one.is_dir())[:10]):
                for picture in sorted(place.glob("*.jpg"))[: count // 10]:
                    shutil.copy(picture, folder / split / f"class{number}" / picture.name)
    return folder


def train_usual(root: Path, network: Network, epochs: int, size: int, workers: int) -> tuple[float, float]:
    """(seconds, best validation accuracy) of a hand-written training loop."""
    resize = v2.Resize(round(size / 0.875), InterpolationMode.BICUBIC)
    steps = [resize, v2.CenterCrop(size), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    loaders = {
        split: DataLoader(
            datasets.ImageFolder(root / split, transform),
            BATCH,
            shuffle=split == "train",
            num_workers=workers,
            persistent_workers=True,
        )
        for split in ("train", "val")
    }
    network.eval()
    head = nn.Linear(network.num_features, 10)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.05)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    best, began = 0.0, time.perf_counter()
    for _ in range(epochs):
        for images, labels in loaders["train"]:
            with torch.no_grad():
                features = network.backbone(images)
            optimizer.zero_grad()
            criterion(head(features), labels).backward()
            optimizer.step()
        right = count = 0
        for images, labels in loaders["val"]:
            with torch.no_grad():
                right += int((head(network.backbone(images)).argmax(1) == labels).sum())
            count += len(labels)
        best = max(best, right / count)
    return time.perf_counter() - began, best


def train_with_imgcls(root: Path, folder: Path, arguments: argparse.Namespace, weights: Path) -> dict[str, Any]:
    """Metrics of `imgcls.fit`, and its seconds as `whole`."""
    overrides = [
        f"model.name={arguments.model}",
        "model.pretrained=false",
        f"model.weights={weights}",
        "model.freeze=backbone",
    ]
    overrides += [
        "data=imagefolder",
        f"data.root={root}",
        f"data.image_size={arguments.size}",
        f"data.batch_size={BATCH}",
    ]
    overrides += [f"trainer.max_epochs={arguments.epochs}", "augment=none", "export.onnx=false"]
    cfg = imgcls.compose([*overrides, f"run_dir={folder}"])
    began = time.perf_counter()
    metrics = imgcls.fit(cfg).metrics
    return {**metrics, "whole": time.perf_counter() - began}


def main() -> None:
    """Measure, and print the figures."""
    parser = command_line(__doc__)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=160)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    torch.manual_seed(0)
    network = create_network(arguments.model, 10)
    if arguments.weights is not None:
        load_weights(network, arguments.weights)
    names = ("usual", "imgcls, first time", "imgcls, again", "usual accuracy", "imgcls accuracy")
    rows: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        root = write_images(arguments.photos, place / "pictures", arguments.limit)
        weights = place / "backbone.safetensors"
        save_file(network.backbone.state_dict(), weights)
        for repeat in range(arguments.repeats):
            os.environ["IMGCLS_CACHE"] = str(place / f"cache{repeat}")  # no cached features the first time
            seconds, accuracy = train_usual(root, network, arguments.epochs, arguments.size, arguments.workers)
            first = train_with_imgcls(root, place / f"first{repeat}", arguments, weights)
            again = train_with_imgcls(root, place / f"again{repeat}", arguments, weights)
            values = (seconds, first["whole"], again["whole"], accuracy, again["val/accuracy"])
            for name, value in zip(names, values, strict=True):
                rows[name].append(value)
    found = {name: statistics.median(values) for name, values in rows.items()}
    print(
        f"\n{arguments.model}, {arguments.epochs} epochs, {arguments.limit} images: median of {arguments.repeats} runs"
    )
    for name in names[:3]:
        print(f"{name:20}{found[name]:9.1f} s{found['usual'] / found[name]:9.1f}x")
    for name in names[3:]:
        print(f"{name:20}{found[name]:9.2%}")
    result = {**vars(arguments), **rows, "again": found["usual"] / found["imgcls, again"]}
    result["first"] = found["usual"] / found["imgcls, first time"]
    report(result, arguments.json)


if __name__ == "__main__":
    main()
