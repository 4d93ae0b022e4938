"""Images per second, ready for the model: imgcls against torchvision's data sets in a DataLoader, side by side.

    python benchmarks/loading.py [--small DIR] [--photos DIR] [--workers 2] [--repeats 3] [--limit 4000] [--json FILE]

DIR contains one folder of images per class. Without it, images are generated: 32 px JPEGs and 500x375 photographs. Each
figure is the median of the repeats, which alternate, so that a busy machine slows both sides. Prints a table and one
line of JSON.

- "usual" is torchvision.datasets.ImageFolder (and CIFAR10, whose images are in memory) with ToTensor and Normalize
  after RandomCrop(32, padding=4) or RandomResizedCrop(224), and RandomHorizontalFlip, in a DataLoader.
- "first epoch" is the first epoch of the usual way, and that of imgcls including building its store; the files are in
  the page cache.
- "handed over" are uint8 batches as passed to a device that augments them; "augmented" are float32 batches that were
  augmented and normalised on the CPU.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from results import command_line, report
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from imgcls.data.augment import Augment
from imgcls.data.crops import PaddedCrop, RandomResizedCrop
from imgcls.data.module import ImageDataModule
from imgcls.data.sources import Source, Split
from imgcls.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD


class Files(ImageDataModule):
    """The first `limit` images of a folder of class folders, all for training."""

    def __init__(self, files: Sequence[tuple[str, int]], classes: int, **options: Any) -> None:
        super().__init__(val_fraction=0, **options)
        self.files, self.classes = files, classes

    def find(self) -> Source:
        paths = tuple(Path(path) for path, _ in self.files)
        labels = np.array([label for _, label in self.files])
        return Source(tuple(map(str, range(self.classes))), Split(tuple(map(str, paths)), labels, paths))


class Arrays(Files):
    """The same images as decoded arrays, like CIFAR-10's files."""

    def find(self) -> Source:
        source = super().find()
        pixels = np.stack([np.asarray(source.train.open(index)) for index in range(len(source.train))])
        return Source(source.class_names, Split(source.train.names, source.train.labels, pixels))


def generate(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """`count` JPEGs of smooth noise in ten class folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        place = folder / f"class{number % 10}" / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(place, quality=90)
    return folder


def usual(data: Any, transform: Any, batch_size: int, workers: int) -> DataLoader[Any]:
    """A DataLoader as in most scripts, with persistent workers."""
    to_floats = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    data.transform = v2.Compose([transform, v2.RandomHorizontalFlip(), *to_floats])
    return DataLoader(
        data, batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )


def image_folder(root: Path, limit: int) -> datasets.ImageFolder:
    """ImageFolder, reduced to `limit` images evenly over the classes."""
    data = datasets.ImageFolder(root)
    data.samples = data.samples[:: max(1, len(data.samples) // limit)][:limit]
    data.imgs, data.targets = data.samples, [label for _, label in data.samples]
    return data


def cifar(arrays: Arrays) -> datasets.CIFAR10:
    """torchvision's CIFAR10 over images that are already in memory."""
    data = datasets.CIFAR10.__new__(datasets.CIFAR10)
    data.data, data.targets = arrays.source.train.pictures, arrays.source.train.labels.tolist()
    data.target_transform = None
    return data


def rate(batches: Iterable[Any], began: float | None = None) -> float:
    """Images per second of one pass."""
    began, count = began or time.perf_counter(), 0
    for batch in batches:
        count += len(batch[0])
    return count / (time.perf_counter() - began)


def take_turns(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of each way over alternating repeats."""
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            measured[name].append(way())
    return {name: statistics.median(values) for name, values in measured.items()}


def resident() -> int:
    """Bytes of this process's private memory."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure_small(root: Path, limit: int, workers: int, repeats: int) -> dict[str, float]:
    """CIFAR-10-like images: crop with padding, flip, normalise."""
    data = image_folder(root, limit)
    options: dict[str, Any] = {"batch_size": 256, "image_size": 32, "resize": 32, "num_workers": workers}
    augment = Augment(PaddedCrop(), flip=0.5)
    arrays = Arrays(data.samples, len(data.classes), augment=augment, **options)
    files = Files(data.samples, len(data.classes), augment=augment, store="memory", **options)
    crop = v2.RandomCrop(32, padding=4)
    folder_loader, cifar_loader = usual(data, crop, 256, workers), usual(cifar(arrays), crop, 256, workers)
    ways = {
        "ImageFolder": lambda: rate(folder_loader),
        "CIFAR10": lambda: rate(cifar_loader),
        "imgcls, files": lambda: rate(files.train_dataloader()),
        "imgcls, arrays": lambda: rate(arrays.train_dataloader()),
    }
    for way in ways.values():
        way()  # the first epoch: worker processes start, the store is built
    return take_turns(ways, repeats)


def measure_photos(root: Path, limit: int, workers: int, repeats: int) -> dict[str, float]:
    """Photographs: random resized crop to 224 px, flip, normalise."""
    data = image_folder(root, limit)
    for path, _ in data.samples:
        Path(path).read_bytes()

    def files(cache: str, **options: Any) -> Files:
        augment = Augment(RandomResizedCrop(), flip=0.5)
        return Files(data.samples, len(data.classes), batch_size=64, num_workers=workers, cache=cache, augment=augment,
                     **options)  # fmt: skip

    def usual_first() -> float:
        began = time.perf_counter()
        return rate(usual(data, v2.RandomResizedCrop(224, (0.35, 1)), 64, workers), began)

    def first(store: str) -> float:
        with tempfile.TemporaryDirectory() as cache:
            began = time.perf_counter()
            module = files(cache, store=store)
            module.setup("fit")
            return rate(module.train_dataloader(), began)

    later = usual(data, v2.RandomResizedCrop(224, (0.35, 1)), 64, workers)
    rate(later)
    with tempfile.TemporaryDirectory() as cache:
        before = resident()
        module, on_disk = files(cache, store="memory"), files(cache, store="disk")
        module.setup("fit")
        memory = resident() - before
        on_disk.setup("fit")
        disk = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())

        def handed_over(which: Files) -> float:
            loader = which.train_dataloader()
            loader.finish = None
            return rate(loader)

        found = take_turns(
            {
                "usual, first epoch": usual_first,
                "imgcls, first epoch, memory": lambda: first("memory"),
                "imgcls, first epoch, disk": lambda: first("disk"),
                "usual": lambda: rate(later),
                "imgcls, handed over, memory": lambda: handed_over(module),
                "imgcls, handed over, disk": lambda: handed_over(on_disk),
                "imgcls, augmented": lambda: rate(module.train_dataloader()),
            },
            repeats,
        )
    return {**found, "memory, MB": memory / 1e6, "disk, MB": disk / 1e6, "images": len(data)}


def main() -> None:
    """Measure, and print the figures."""
    parser = command_line(__doc__)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--limit", type=int, default=20000, help="largest number of small images; a tenth as many photographs"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        small = arguments.small or generate(Path(made) / "small", arguments.limit, (32, 32))
        photos = arguments.photos or generate(Path(made) / "photos", arguments.limit // 10, (500, 375))
        options = arguments.workers, arguments.repeats
        at_32 = measure_small(small, arguments.limit, *options)
        at_224 = measure_photos(photos, arguments.limit // 10, *options)
    times = {
        "small, against CIFAR10": at_32["imgcls, arrays"] / at_32["CIFAR10"],
        "small, against ImageFolder": at_32["imgcls, files"] / at_32["ImageFolder"],
        "photographs, handed over": at_224["imgcls, handed over, memory"] / at_224["usual"],
        "photographs, handed over from disk": at_224["imgcls, handed over, disk"] / at_224["usual"],
        "photographs, augmented": at_224["imgcls, augmented"] / at_224["usual"],
        "photographs, first epoch's time": at_224["usual, first epoch"] / at_224["imgcls, first epoch, memory"],
        "photographs, first epoch's time, disk": at_224["usual, first epoch"] / at_224["imgcls, first epoch, disk"],
    }
    for title, rows in (("32 px, images/s", at_32), ("224 px, images/s", at_224), ("ratios", times)):
        print(f"\n{title}")
        for name, value in rows.items():
            print(f"  {name:40} {value:12,.2f}" if rows is times else f"  {name:40} {value:12,.0f}")
    figures = {"small": at_32, "photos": at_224, "ratios": times}
    setting = {"benchmark": "loading", "workers": arguments.workers, "threads": torch.get_num_threads()}
    report({**setting, **figures}, arguments.json)


if __name__ == "__main__":
    main()
