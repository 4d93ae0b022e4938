"""experiment=cifar10_fast against plain loops on a part of CIFAR-10, in equal time, on the CPU.

    python benchmarks/recipes.py --cifar10 DIR [--train 5000] [--test 1000] [--epochs 3] [--seeds 0 1 2]
        [--systems NAME …] [--out recipes.jsonl]

DIR contains CIFAR-10 in any layout that `data=cifar10` reads. "cifar10_fast" is the recipe with its rates for batches
of 128. The others are plain PyTorch loops with the same images: SGD with momentum, padded crops and flips, a rate that
rises and falls. They train for as many processor seconds as the recipe with the same seed took for everything, from
reading its options to the test, which they have for nothing. One thread, float32, channels last on both sides.

Each row is a line of JSON in --out, written when it is measured; rows that are there are not measured again. Prints the
mean and the standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from finetuning import Clock, Row, read_rows
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

import imgcls
from imgcls.data.cifar10 import BATCHES, BINARY, Cifar10
from imgcls.data.sources import Split
from imgcls.models.backbones import create_network

BATCH = 128
SHARED = ("system", "seed", "train", "test", "epochs")
RECIPE = "cifar10_fast"

Images = tuple[np.ndarray, np.ndarray]
"""uint8 (N, 32, 32, 3) and labels, (N,)."""


def choose(source: Split, count: int) -> Images:
    """`count` images of a split, and their labels."""
    chosen = np.random.default_rng(0).permutation(len(source))[:count]
    return np.stack([np.asarray(source.open(int(row))) for row in chosen]), source.labels[chosen]


def write_binary(images: Images, batches: list[str], folder: Path) -> None:
    """Write images in CIFAR-10's binary layout."""
    pixels, labels = images
    rows = np.hstack([labels[:, None].astype(np.uint8), pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)])
    for name, part in zip(batches, np.array_split(rows, len(batches)), strict=True):
        (folder / f"{name}.bin").write_bytes(part.tobytes())


def train_recipe(row: Row, root: Path) -> Row:
    """`imgcls.fit` with the recipe."""
    epochs = row["epochs"]
    overrides = [
        f"experiment={RECIPE}",
        f"optim.other_lr={4.4 * BATCH / 2000}",  # scales with the batch size: the recipe's is for 2,000
        *(f"data.root={root}", f"data.batch_size={BATCH}", f"seed={row['seed']}", f"trainer.max_epochs={epochs}"),
        *("trainer.accelerator=cpu", "trainer.precision=32-true", "model.channels_last=true", "debug=off"),
        *("report=false", "export.onnx=false", "quiet=true"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        run = imgcls.fit(imgcls.compose([*overrides, f"run_dir={folder}/run", f"+data.cache={folder}/cache"]))
        return {"accuracy": run.metrics["test/accuracy"], **clock.read(), "passes": epochs}


def resnet18() -> nn.Module:
    """ResNet18 with a first convolution of 3x3 and no pooling."""
    return create_network("resnet18", 10, stem="small")


def resnet20() -> nn.Module:
    """The ResNet20 of He et al. 2016, made for CIFAR-10: 16, 32 and 64 channels."""
    network = ResNet(BasicBlock, (3, 3, 3), num_classes=10, channels=(16, 32, 64))
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = network.layer4 = nn.Identity()
    return network


PLAIN: dict[str, Callable[[], nn.Module]] = {"plain ResNet18": resnet18, "plain ResNet20": resnet20}


def train_plainly(row: Row, train: Images, test: Images, seconds: float) -> Row:
    """A loop of a hundred lines less, which ends after this number of processor seconds."""
    torch.manual_seed(row["seed"])
    network = PLAIN[row["system"]]().to(memory_format=torch.channels_last).train()
    pixels, labels = torch.from_numpy(train[0]).permute(0, 3, 1, 2) / 255, torch.from_numpy(train[1])
    mean, std = pixels.mean((0, 2, 3))[:, None, None], pixels.std((0, 2, 3))[:, None, None]
    padded = F.pad((pixels - mean) / std, (4, 4, 4, 4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    clock, seen, share = Clock(), 0, 0.0
    while share < 1:
        for chosen in torch.randperm(len(padded)).split(BATCH)[: max(1, len(padded) // BATCH)]:
            share = clock.read()["processor"] / seconds
            if share >= 1:
                break
            optimizer.param_groups[0]["lr"] = 0.1 * min(share / 0.2, (1 - share) / 0.8) + 1e-4
            loss = F.cross_entropy(network(augment(padded, chosen)), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(chosen)
    times = clock.read()
    network.eval()
    images = (torch.from_numpy(test[0]).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        found = torch.cat([network(batch).argmax(1) for batch in images.split(BATCH)])
    accuracy = float((found == torch.from_numpy(test[1])).float().mean())
    return {"accuracy": accuracy, **times, "passes": seen / len(padded)}


def augment(padded: Tensor, chosen: Tensor) -> Tensor:
    """Random crops of 32 px and flips."""
    places, flips = torch.randint(0, 9, (len(chosen), 2)).tolist(), torch.rand(len(chosen)) < 0.5
    crops = [padded[row, :, y : y + 32, x : x + 32] for row, (y, x) in zip(chosen.tolist(), places, strict=True)]
    images = torch.stack(crops)
    return torch.where(flips[:, None, None, None], images.flip(-1), images).contiguous(
        memory_format=torch.channels_last
    )


def table(rows: list[Row]) -> list[str]:
    """Test accuracy, processor seconds and passes over the images of each system, mean ± standard deviation."""
    lines = ["| system | test accuracy | processor seconds | passes | seeds |", "|---|---|---|---|---|"]
    for system in dict.fromkeys(row["system"] for row in rows):
        found = [row for row in rows if row["system"] == system]
        cells = []
        for name, factor in (("accuracy", 100), ("processor", 1), ("passes", 1)):
            values = [factor * row[name] for row in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        lines.append(f"| {system} | {' | '.join(cells)} | {len(found)} |")
    return lines


def main(words: list[str] | None = None) -> None:
    """Measure the missing rows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    systems = [RECIPE, *PLAIN]
    parser.add_argument("--systems", nargs="+", default=systems, choices=systems)
    parser.add_argument("--out", type=Path, default=Path("recipes.jsonl"))
    arguments = parser.parse_args(words)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    scale = {name: getattr(arguments, name) for name in ("train", "test", "epochs")}
    source = Cifar10(arguments.cifar10, val_fraction=0).source
    assert source.test is not None
    images = {"train": choose(source.train, arguments.train), "test": choose(source.test, arguments.test)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / BINARY).mkdir()
        for name, part in images.items():
            write_binary(part, BATCHES[name], Path(folder) / BINARY)
        for seed in arguments.seeds:
            for system in sorted(arguments.systems, key=systems.index):  # the recipe first: it sets the time
                row = {"system": system, "seed": seed, **scale}
                if find(arguments.out, row):
                    continue
                if system == RECIPE:
                    found = train_recipe(row, Path(folder))
                elif budget := find(arguments.out, {**row, "system": RECIPE}):
                    found = train_plainly(row, images["train"], images["test"], budget["processor"])
                else:
                    parser.error(f"{system} has the time of {RECIPE}, which --out has no row of with seed {seed}.")
                line = json.dumps({**row, **found, "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__})
                print(line, flush=True)
                with arguments.out.open("a") as file:
                    file.write(line + "\n")
    rows = [row for row in read_rows(arguments.out) if all(row[name] == value for name, value in scale.items())]
    print("\n".join(table(rows)))


def find(file: Path, row: Row) -> dict[str, Any] | None:
    """The measured row with the system, seed and scale of `row`."""
    return next((done for done in read_rows(file) if all(done[name] == row[name] for name in SHARED)), None)


if __name__ == "__main__":
    main()
