"""What a search saves: trials that share features against the usual loop, and pruned trials against complete ones.

    python benchmarks/sweeps.py sharing [--photos DIR] [--weights FILE] [--train 4000] [--val 2000] [--side 32]
    python benchmarks/sweeps.py accuracy --keep DIR [--seeds 0 1 2] [the options of sharing]
    python benchmarks/sweeps.py pruning [--pruner successive_halving] [--trials 20] [--epochs 12] [--seeds 0 1 2]

"sharing" is the search of reference system 000 in small: a frozen ResNet50 with the head 2048-1000-100-10, learning
rate and number of epochs, four trials. imgcls is its command, `-m hydra/sweeper=optuna search=cifar10_resnet50`, from
the start of the process to its end. "usual" trains the same four configurations one after the other, each in its own
process that loads everything and runs the frozen backbone in every epoch (under no_grad, in evaluation mode, with a
DataLoader of two workers): torchvision's ImageFolder, the same optimiser, schedule, clipping and images. DIR contains
train/<class>/*.png, such as CIFAR-10 in folders; without it, images are generated. The weights are random, or FILE's.

"accuracy" compares the best of these four trials over several seeds; run "sharing" with the same --keep DIR first. The
usual loop is the same, on features that it computes once, since they never change.

"pruning" searches the same space on the digits with and without a pruner, and counts the trained epochs.

Each prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from results import command_line, report

BATCH, SIDE = 64, 32


def write_images(photos: Path | None, folder: Path, counts: dict[str, int]) -> Path:
    """Copy or generate `counts` of images of ten classes for training and validation, as folders."""
    for number in range(10):
        begin = 0
        sources = sorted(sorted(photos.glob("train/*"))[number].iterdir()) if photos is not None else []
        for split, count in counts.items():
            target = folder / split / f"class{number}"
            target.mkdir(parents=True)
            for position in range(begin, begin + count // 10):
                file = target / f"{position:05}.png"
                if photos is not None:
                    shutil.copy(sources[position], file.with_suffix(sources[position].suffix))
                else:
                    _generated(number, position).save(file)
            begin += count // 10
    return folder


def _generated(number: int, position: int) -> Any:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(1000 * position + number).integers(0, 160, (SIDE, SIDE, 3), dtype=np.uint8)
    noise[:, :, number % 3] += 9 * number
    return Image.fromarray(noise)


class Usual:
    """A hand-written setup: the backbone with its images, and a head."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        from torch.utils.data import DataLoader
        from torchvision import datasets
        from torchvision.transforms import v2

        from imgcls.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
        from imgcls.models.backbones import create_network
        from imgcls.models.heads import Mlp
        from imgcls.models.weights import load_weights

        torch.manual_seed(0)
        self.network = create_network("resnet50", 10, head=Mlp(hidden=[1000, 100]))
        load_weights(self.network, Path(job["weights"]))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network.to(self.device).eval()
        transform = v2.Compose(
            [
                v2.Resize(job["side"], v2.InterpolationMode.BICUBIC),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )
        self.pictures = {
            split: DataLoader(
                datasets.ImageFolder(Path(job["root"]) / split, transform),
                BATCH,
                shuffle=split == "train",
                num_workers=os.cpu_count() or 1,
                persistent_workers=True,
            )
            for split in ("train", "val")
        }

    def features(self, split: str) -> Iterator[tuple[Any, Any]]:
        """(features, labels) of each batch of an epoch."""
        import torch

        for images, labels in self.pictures[split]:
            with torch.no_grad():
                features = self.network.features(images.to(self.device))
            yield features, labels.to(self.device)  # out of no_grad, which would hold for the caller too


def usual_training(
    head: Any, batches: Callable[[str], Iterable[tuple[Any, Any]]], steps_per_epoch: int, lr: float, epochs: int
) -> float:
    """The best validation accuracy of `head` in a hand-written training loop.

    `batches` of "train" and "val" yields (features, labels), once per epoch.
    """
    import torch
    from torch import nn

    optimizer, steps = torch.optim.Adam(head.parameters(), lr=lr), epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    criterion = nn.CrossEntropyLoss()
    best = 0.0
    for _ in range(epochs):
        head.train()
        for features, labels in batches("train"):
            optimizer.zero_grad()
            criterion(head(features), labels).backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        head.eval()
        right = count = 0
        with torch.no_grad():
            for features, labels in batches("val"):
                right += int((head(features).argmax(1) == labels).sum())
                count += len(labels)
        best = max(best, right / count)
    return best


def usual_trial(job: dict[str, Any]) -> float:
    """The best validation accuracy of one configuration, running the backbone in every epoch."""
    usual = Usual(job)
    steps = len(usual.pictures["train"])
    return usual_training(usual.network.head, usual.features, steps, job["lr"], job["epochs"])


def command(overrides: list[str], cache: Path) -> float:
    """Seconds of `python -m imgcls.train -m …`."""
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "imgcls.train", "-m", *overrides],
        env={**os.environ, "IMGCLS_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(ended.stdout + ended.stderr)
    return time.perf_counter() - began


def sharing(arguments: argparse.Namespace) -> dict[str, Any]:
    """The search of reference system 000 in small, both ways."""
    with tempfile.TemporaryDirectory() as temporary:
        measurements = Measurements(arguments.keep or Path(temporary))
        search = partial(shared_search, arguments, measurements.folder)
        first, rows = measurements.get("imgcls", search)
        timed = [
            measurements.get(f"trial {row['trial']}", partial(usual_process, arguments, measurements.folder, row))
            for row in rows
        ]
        searches = [first, *(measurements.get(f"imgcls {more}", search)[0] for more in range(2, arguments.repeats + 1))]
    seconds = statistics.median(searches)
    usual_seconds, usual = sum(one[0] for one in timed), [one[1] for one in timed]
    ours = [float(row["val/accuracy"]) for row in rows]
    images = f"{arguments.train} training and {arguments.val} validation images of {arguments.side} px"
    print(f"\nfour trials, {images}, frozen ResNet50")
    print(f"{'trial':>5}{'rate':>10}{'epochs':>8}{'usual':>9}{'imgcls':>9}")
    for row, left, right in zip(rows, usual, ours, strict=True):
        rate, epochs = float(row["optim.lr"]), row["trainer.max_epochs"]
        print(f"{row['trial']:>5}{rate:10.2g}{epochs:>8}{left:9.2%}{right:9.2%}")
    print(f"{'best':>5}{'':18}{max(usual):9.2%}{max(ours):9.2%}")
    print(f"{'time':>5}{'':18}{usual_seconds:7.1f} s{seconds:7.1f} s   {usual_seconds / seconds:.1f}x")
    print(f"imgcls's searches, each with empty caches: {', '.join(f'{one:.1f} s' for one in searches)}")
    return {
        "usual_seconds": usual_seconds,
        "imgcls_seconds": searches,
        "ratio": usual_seconds / seconds,
        "usual_accuracy": usual,
        "imgcls_accuracy": ours,
        "epochs": [int(row["trainer.max_epochs"]) for row in rows],
    }


class Measurements:
    """Stored measurements, so that a long comparison can be interrupted between its parts and resumed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "measured.json"
        self.measured: dict[str, Any] = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The stored result for `name`, measured if missing."""
        if name not in self.measured:
            self.measured[name] = measure()
            self.file.write_text(json.dumps(self.measured))
            print(f"{name}: {self.measured[name][0]:.1f} s", file=sys.stderr, flush=True)
        return self.measured[name]


def shared_search(arguments: argparse.Namespace, place: Path) -> tuple[float, list[dict[str, str]]]:
    """(seconds, rows of sweep.csv) of imgcls's search; images and weights are written to `place` first."""
    write_search(arguments, place)
    overrides = ["hydra/sweeper=optuna", f"hydra.sweep.dir={place / 'sweep'}", "search=cifar10_resnet50"]
    overrides += [
        "search.objective=val/accuracy",
        f"search.workers={arguments.workers}",
        *shared_overrides(arguments, place),
    ]
    seconds = command(overrides, place / "cache")
    with (place / "sweep" / "sweep.csv").open() as file:
        return seconds, list(csv.DictReader(file))


def write_search(arguments: argparse.Namespace, place: Path) -> None:
    """Write the images and the weights of a search, without an earlier one, to `place`."""
    import torch
    from safetensors.torch import save_file

    from imgcls.models.backbones import create_network

    for name in ("pictures", "sweep", "cache"):
        shutil.rmtree(place / name, ignore_errors=True)
    write_images(arguments.photos, place / "pictures", {"train": arguments.train, "val": arguments.val})
    if arguments.weights is None:
        torch.manual_seed(0)
        save_file(create_network("resnet50", 10).backbone.state_dict(), place / "backbone.safetensors")


def shared_overrides(arguments: argparse.Namespace, place: Path) -> list[str]:
    """Overrides that all trials share."""
    overrides = ["data=imagefolder", f"data.root={place / 'pictures'}", "model=resnet50", "debug=off"]
    overrides += ["model.pretrained=false", f"model.weights={backbone(arguments, place)}", "model.freeze=backbone"]
    overrides += ["head=mlp", "model.head.hidden=[1000,100]", "optim=adam", "optim.warmup_epochs=0"]
    overrides += [
        f"data.image_size={arguments.side}",
        f"data.resize={arguments.side}",
        f"data.batch_size={BATCH}",
        "augment=none",
    ]
    return [*overrides, "loss.label_smoothing=0"]


def accuracy(arguments: argparse.Namespace) -> dict[str, Any]:
    """The best trial of a stored "sharing" for each seed, both ways."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from imgcls.models.heads import Mlp

    rows = Measurements(arguments.keep).measured["imgcls"][1]
    trials = [(float(row["optim.lr"]), int(row["trainer.max_epochs"])) for row in rows]
    usual = Usual(trial_job(arguments, arguments.keep, rows[0]))
    features = {
        split: TensorDataset(*(torch.cat(parts) for parts in zip(*usual.features(split), strict=True)))
        for split in ("train", "val")
    }
    bests: dict[str, list[float]] = {"usual": [], "imgcls": []}
    for seed in arguments.seeds:
        found = []
        for lr, epochs in trials:
            torch.manual_seed(seed)
            loaders = {split: DataLoader(data, BATCH, shuffle=split == "train") for split, data in features.items()}
            head = Mlp(hidden=[1000, 100])(2048, 10)
            found.append(usual_training(head, loaders.__getitem__, len(loaders["train"]), lr, epochs))
        bests["usual"].append(max(found))
    accuracies = []
    for number, (lr, epochs) in enumerate(trials):
        folder = arguments.keep / f"seeds{number}"
        shutil.rmtree(folder, ignore_errors=True)
        seeds = ",".join(map(str, arguments.seeds))
        overrides = [
            *shared_overrides(arguments, arguments.keep),
            f"seed={seeds}",
            f"optim.lr={lr}",
            f"trainer.max_epochs={epochs}",
        ]
        command([*overrides, f"hydra.sweep.dir={folder}"], arguments.keep / "cache")
        accuracies.append(
            [
                highest(folder / str(position) / "metrics.csv", "val/accuracy")
                for position in range(len(arguments.seeds))
            ]
        )
    bests["imgcls"] = [max(one) for one in zip(*accuracies, strict=True)]
    print(
        f"\nbest validation accuracy of four trials, {arguments.train} + {arguments.val} images of {arguments.side} px"
    )
    print(f"{'seed':>5}{'usual':>9}{'imgcls':>9}")
    for seed, left, right in zip(arguments.seeds, bests["usual"], bests["imgcls"], strict=True):
        print(f"{seed:>5}{left:9.2%}{right:9.2%}")
    means = {name: statistics.mean(values) for name, values in bests.items()}
    print(f"{'mean':>5}{means['usual']:9.2%}{means['imgcls']:9.2%}   {means['imgcls'] - means['usual']:+.2%}")
    return {"bests": bests, "means": means}


def highest(file: Path, column: str) -> float:
    """The largest value in a column of a CSV file."""
    with file.open() as opened:
        return max(float(row[column]) for row in csv.DictReader(opened))


def usual_process(arguments: argparse.Namespace, place: Path, row: dict[str, str]) -> tuple[float, float]:
    """(seconds, best validation accuracy) of one configuration in its own process, with the usual loop."""
    line = [sys.executable, __file__, "trial", "--job", json.dumps(trial_job(arguments, place, row))]
    began = time.perf_counter()
    process = subprocess.run(line, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, float(process.stdout.splitlines()[-1])


def trial_job(arguments: argparse.Namespace, place: Path, row: dict[str, str]) -> dict[str, Any]:
    """Job description for a process of the usual loop, from a row of sweep.csv."""
    job = {"lr": float(row["optim.lr"]), "epochs": int(row["trainer.max_epochs"]), "side": arguments.side}
    return job | {"root": str(place / "pictures"), "weights": str(backbone(arguments, place))}


def backbone(arguments: argparse.Namespace, place: Path) -> Path:
    """Path of the weights file."""
    return arguments.weights if arguments.weights is not None else place / "backbone.safetensors"


def pruning(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search on the digits with and without a pruner, with imgcls.search in this process."""
    import contextlib

    import imgcls

    space = {"optim.lr": "tag(log,interval(1e-4,1e-1))", "data.batch_size": [32, 64, 128], "optim": ["sgd", "adamw"]}
    overrides = [f"model.name={arguments.model}", f"trainer.max_epochs={arguments.epochs}", "debug=off"]
    overrides += [f"data.image_size={arguments.size}", f"data.resize={arguments.size}"]
    results: list[dict[str, Any]] = []
    print(f"\n{arguments.trials} trials of {arguments.epochs} epochs, digits, {arguments.model}, {arguments.pruner}")
    print(f"{'seed':>5}{'complete':>16}{'pruned':>16}{'epochs':>14}{'share':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.keep or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        os.environ["IMGCLS_CACHE"] = str(place / "cache")
        for seed in arguments.seeds:
            found = {}
            for pruner in ("none", arguments.pruner):
                folder = place / f"{seed}-{pruner}"
                with (place / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
                    found[pruner] = imgcls.search(
                        [*overrides, f"seed={seed}"], space, folder=folder, trials=arguments.trials, pruner=pruner
                    )
            whole, pruned = found["none"], found[arguments.pruner]
            epochs = [sum(int(trial["epochs"]) for trial in one.trials) for one in (whole, pruned)]
            best = [one.study.best_value for one in (whole, pruned)]
            results.append({"seed": seed, "best": best, "epochs": epochs, "share": epochs[1] / epochs[0]})
            print(
                f"{seed:5}{best[0]:16.2%}{best[1]:16.2%}{epochs[1]:7} of {epochs[0]:<4}{epochs[1] / epochs[0]:7.0%}",
                flush=True,
            )
    return {"pruner": arguments.pruner, "trials": arguments.trials, "results": results}


def main() -> None:
    """Measure, and print the figures."""
    parser = command_line(__doc__)
    parser.add_argument("what", choices=("sharing", "accuracy", "pruning", "trial"))
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--val", type=int, default=2000)
    parser.add_argument("--side", type=int, default=SIDE, help="side of the backbone's input, px")
    parser.add_argument("--workers", type=int, default=1, help="parallel trials of imgcls")
    parser.add_argument("--repeats", type=int, default=3, help="searches of imgcls; the median counts")
    parser.add_argument("--pruner", default="successive_halving")
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--size", type=int, default=16, help="side of the digits, px")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="folder for results: the next call resumes from it")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "trial":
        print(usual_trial(json.loads(arguments.job)))
        return
    if arguments.what == "accuracy" and arguments.keep is None:
        parser.error("accuracy needs --keep DIR with the results of sharing")
    result = {"sharing": sharing, "accuracy": accuracy, "pruning": pruning}[arguments.what](arguments)
    report({**vars(arguments), **result}, arguments.json)


if __name__ == "__main__":
    main()
