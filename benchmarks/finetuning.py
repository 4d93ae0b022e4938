"""Fine-tuning with imgcls against fastai, the loop of a tutorial and a logistic regression on frozen features.

    python benchmarks/finetuning.py --caltech DIR --dogs DIR --cifar DIR --weights FILE [--model tf_efficientnet_lite0]
        [--fastai PYTHON] [--seeds 0 1 2] [--epochs 5] [--size 96] [--data NAME …] [--systems NAME …] [--out FILE]

All systems get the same weights, the same files in train, val and test folders, the same size and number of epochs
(fastai's `fine_tune` has one more, with a frozen body). --caltech contains a folder per class; --dogs train, valid and
test; --cifar train and test with at least 100 images per class. fastai is not installed with imgcls: --fastai is the
Python of an environment that has it and timm; without it, its rows are left out.

Each row is a process of its own and a line of JSON in --out; rows that are there are not measured again. "seconds" are
those from the files on disk to the test accuracy, without imports; "processor" are those that the process computed,
which others on a shared machine disturb less. One thread each. Prints a table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SHARED = ("data", "system", "seed", "epochs", "size", "model")
SETS = ("caltech", "dogs", "dogs5", "cifar1000")
PRESET_LENGTH = "trainer.max_epochs=${by_start:10,${preset.length},30}"
"""The default, so that a preset chooses its own number of epochs."""
IMGCLS: dict[str, list[str]] = {
    "imgcls": [],
    "imgcls, preset=fast": ["preset=fast", PRESET_LENGTH],
    "imgcls, preset=best": ["preset=best", PRESET_LENGTH],
}
BATCH = 64

Row = dict[str, Any]


class Clock:
    """Time since its construction."""

    def __init__(self) -> None:
        self.began = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds on the wall, and those that all threads of this process computed."""
        return {"seconds": time.monotonic() - self.began[0], "processor": time.process_time() - self.began[1]}


def pictures(folder: Path) -> list[Path]:
    """The image files of a folder, sorted."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))


def link(root: Path, split: str, name: str, files: Iterable[Path]) -> None:
    """Symbolic links root/split/name/file; no folder without files."""
    folder = root / split / name
    for file in files:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).symlink_to(file.resolve())


def write_data(name: str, arguments: argparse.Namespace, root: Path) -> None:
    """The folders train, val and test of a data set, as links."""
    if name == "caltech":
        for place in sorted(arguments.caltech.iterdir()):
            files = pictures(place)
            rest = [file for number, file in enumerate(files) if number % 5]
            link(root, "test", place.name, files[::5])
            link(root, "val", place.name, rest[::10])
            link(root, "train", place.name, [file for number, file in enumerate(rest) if number % 10])
    elif name == "dogs":
        for split in ("train", "val", "test"):
            for place in sorted((arguments.dogs / {"val": "valid"}.get(split, split)).iterdir()):
                link(root, split, place.name, pictures(place))
    elif name == "dogs5":
        for place in sorted((arguments.dogs / "train").iterdir()):
            files = pictures(place)
            link(root, "train", place.name, files[:5])
            link(root, "val", place.name, files[5:6])
            link(root, "test", place.name, pictures(arguments.dogs / "test" / place.name))
    else:
        for place in sorted((arguments.cifar / "train").iterdir()):
            files = pictures(place)[:100]
            link(root, "val", place.name, files[::10])
            link(root, "train", place.name, [file for number, file in enumerate(files) if number % 10])
            link(root, "test", place.name, pictures(arguments.cifar / "test" / place.name)[:100])


def run_imgcls(row: Row, root: Path, weights: Path, folder: Path) -> Row:
    """`imgcls.fit` with the default options and those of the system."""
    import imgcls
    import imgcls.training.pipeline  # imports torch, lightning and timm

    resize = [f"data.resize={row['size']}"] if row["data"] == "cifar1000" else []
    overrides = [
        "data=imagefolder",
        f"data.root={root}",
        f"data.image_size={row['size']}",
        f"model.name={row['model']}",
        f"model.weights={weights}",
        f"trainer.max_epochs={row['epochs']}",
        "trainer.accelerator=cpu",
        "report=false",
        "export.onnx=false",
        "quiet=true",
        f"seed={row['seed']}",
        f"run_dir={folder / 'run'}",
        *resize,
        *IMGCLS[row["system"]],
    ]
    clock = Clock()
    metrics = imgcls.fit(imgcls.compose(overrides)).metrics
    return {"accuracy": metrics["test/accuracy"], "validation": metrics["val/accuracy"], **clock.read()}


def run_fastai(row: Row, root: Path, weights: Path, folder: Path) -> Row:
    """fastai's `vision_learner(…).fine_tune(…)`, with its usual transformations."""
    import torch
    from fastai.vision.all import (  # type: ignore[import-not-found]
        ImageDataLoaders,
        Resize,
        accuracy,
        aug_transforms,
        get_image_files,
        set_seed,
        vision_learner,
    )

    torch.set_num_threads(1)
    set_seed(row["seed"], reproducible=True)
    clock = Clock()
    size = row["size"]
    loaders = ImageDataLoaders.from_folder(
        root,
        train="train",
        valid="val",
        item_tfms=Resize(round(size * 4 / 3)),
        batch_tfms=aug_transforms(size=size, min_scale=0.75),
        bs=BATCH,
        num_workers=0,
        seed=row["seed"],
    )
    overlay = {"file": str(weights)}
    learner = vision_learner(
        loaders, row["model"], metrics=accuracy, pretrained_cfg_overlay=overlay, path=folder, model_dir="models"
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(row["epochs"])
        files = get_image_files(root / "test")
        test = loaders.test_dl(files, num_workers=0)
        scores, _ = learner.get_preds(dl=test)
        _, validation = learner.validate()
    names = list(loaders.vocab)
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    right = float((scores.argmax(1) == labels).float().mean())
    return {"accuracy": right, "validation": float(validation), **clock.read()}


def run_tutorial(row: Row, root: Path, weights: Path, folder: Path) -> Row:
    """The loop of PyTorch's tutorial on transfer learning: SGD at 0.001, a tenth of it after seven epochs."""
    import timm
    import torch
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    torch.manual_seed(row["seed"])
    clock = Clock()
    size = row["size"]
    config = timm.get_pretrained_cfg(row["model"])
    ends = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)]
    training = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *ends])
    testing = v2.Compose([v2.Resize(round(size / 0.875)), v2.CenterCrop(size), *ends])
    sets = {
        split: datasets.ImageFolder(root / split, training if split == "train" else testing)
        for split in ("train", "val", "test")
    }
    network = timm.create_model(row["model"], num_classes=len(sets["train"].classes))
    state = {name: value for name, value in load_file(weights).items() if not name.startswith("classifier.")}
    network.load_state_dict(state, strict=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)

    def evaluate(split: str) -> float:
        network.eval()
        right = 0
        places = torch.tensor([sets["train"].class_to_idx[name] for name in sets[split].classes])
        with torch.inference_mode():
            for images, labels in DataLoader(sets[split], BATCH):
                right += int((network(images).argmax(1) == places[labels]).sum())
        return right / len(sets[split])

    best, best_state = -1.0, network.state_dict()
    for _ in range(row["epochs"]):
        network.train()
        for images, labels in DataLoader(sets["train"], 32, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
        schedule.step()
        if (validation := evaluate("val")) > best:
            best, best_state = validation, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(best_state)
    return {"accuracy": evaluate("test"), "validation": best, **clock.read()}


def run_regression(row: Row, root: Path, weights: Path, folder: Path) -> Row:
    """scikit-learn's LogisticRegressionCV on the features that imgcls stores; "seconds" are those of `fit` alone."""
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    import imgcls
    from imgcls.training.build import build_data, build_network
    from imgcls.training.devices import choose_devices
    from imgcls.training.frozen_backbone import compute_features

    resize = [f"data.resize={row['size']}"] if row["data"] == "cifar1000" else []
    overrides = ["data=imagefolder", f"data.root={root}", f"data.image_size={row['size']}", *resize]
    overrides += [f"model.name={row['model']}", f"model.weights={weights}", f"seed={row['seed']}"]
    cfg = imgcls.compose(overrides)
    data = build_data(cfg, choose_devices("cpu", 1, 1))
    data.setup(None)
    stored = compute_features(data, build_network(cfg, data), device=torch.device("cpu"))
    features = {split: np.array(store.features[0]) for split, store in stored.items()}
    labels = {split: part.labels for split, part in data.source.splits().items()}
    folds = min(5, int(np.bincount(labels["train"]).min()))
    clock = Clock()
    model = make_pipeline(StandardScaler(), LogisticRegressionCV(cv=folds, max_iter=1000))
    model.fit(features["train"], labels["train"])
    times = clock.read()
    accuracies = {split: float(model.score(features[split], labels[split])) for split in ("val", "test")}
    return {"accuracy": accuracies["test"], "validation": accuracies["val"], **times}


SYSTEMS: dict[str, Callable[[Row, Path, Path, Path], Row]] = {
    **dict.fromkeys(IMGCLS, run_imgcls),
    "fastai fine_tune": run_fastai,
    "tutorial loop": run_tutorial,
    "LogisticRegressionCV": run_regression,
}


def measure(row: Row, arguments: argparse.Namespace, root: Path, script: str = __file__) -> Row | None:
    """The row with its figures, measured in a process of its own, of `script`; None where that failed."""
    python = str(arguments.fastai) if row["system"].startswith("fastai") else sys.executable
    with tempfile.TemporaryDirectory() as temporary:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "IMGCLS_CACHE": f"{temporary}/cache"}
        words = [python, script, "--one", json.dumps(row), "--root", str(root), "--weights", str(arguments.weights)]
        done = subprocess.run(
            [*words, "--folder", temporary], env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
    if done.returncode:
        print(f"{row}: failed with exit code {done.returncode}", file=sys.stderr)
        return None
    return {**row, **json.loads(done.stdout.splitlines()[-1])}


def read_rows(file: Path) -> list[Row]:
    """The rows measured so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def table(rows: list[Row]) -> list[str]:
    """Test accuracy (percent, mean and standard deviation) of each system on each data set, and processor seconds."""
    names = [name for name in SETS if any(row["data"] == name for row in rows)]
    lines = ["| system | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for system in dict.fromkeys(row["system"] for row in rows):
        cells = []
        for name in names:
            found = [row for row in rows if (row["system"], row["data"]) == (system, name)]
            values = [100 * row["accuracy"] for row in found]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            seconds = statistics.mean(row["processor"] for row in found) if found else 0.0
            cells.append(f"{statistics.mean(values):.1f}{spread}, {seconds:.1f} s" if found else "")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return lines


def main(words: list[str] | None = None) -> None:
    """Measure the missing rows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("caltech", "dogs", "cifar", "weights", "fastai"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--data", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--out", type=Path, default=Path("finetuning.jsonl"))
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.one is not None:
        found = SYSTEMS[arguments.one["system"]](arguments.one, arguments.root, arguments.weights, arguments.folder)
        print(json.dumps(found))
        return
    systems = [name for name in arguments.systems if arguments.fastai or not name.startswith("fastai")]
    sources = {"caltech": arguments.caltech, "cifar1000": arguments.cifar}
    names = [name for name in arguments.data if sources.get(name, arguments.dogs) is not None]
    with tempfile.TemporaryDirectory() as temporary:
        for seed in arguments.seeds:
            for name in names:
                root = Path(temporary) / name
                if not root.exists():
                    write_data(name, arguments, root)
                for system in systems:
                    row = {"data": name, "system": system, "seed": seed, "epochs": arguments.epochs}
                    row |= {"size": arguments.size, "model": arguments.model}
                    if any(all(done[key] == row[key] for key in SHARED) for done in read_rows(arguments.out)):
                        continue
                    if (found := measure(row, arguments, root)) is not None:
                        print(json.dumps(found), flush=True)
                        with arguments.out.open("a") as file:
                            file.write(json.dumps(found) + "\n")
    rows = [
        row for row in read_rows(arguments.out) if (row["epochs"], row["size"]) == (arguments.epochs, arguments.size)
    ]
    print("\n".join(table([row for row in rows if row["model"] == arguments.model])))


if __name__ == "__main__":
    main()
