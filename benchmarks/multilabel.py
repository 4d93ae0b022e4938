"""Several labels for one image: imgcls against a plain loop of forty lines, and the step against one of a single label.

    python benchmarks/multilabel.py --caltech DIR --dogs DIR --weights FILE [--model tf_efficientnet_lite0]
        [--seeds 0 1 2] [--epochs 4] [--size 96] [--train 480] [--systems NAME …] [--out FILE]

Images with several things are made of eight classes of Caltech (a folder each in --caltech) and four breeds of dogs
(train, valid and test in --dogs): one to four of them, in the quarters of a square. The things of the test images are
in no other image. Both systems get the same files, weights, sizes, crops, rates and numbers of epochs; imgcls has its
defaults. Each row is a process of its own and a line of JSON in --out; rows that are there are not measured again. The
rows "step" are the ratio of the processor time of whole training steps, multi-label to single-label, which alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetuning import measure, read_rows

SYSTEMS = ("imgcls", "plain loop", "step")
CALTECH, DOGS, QUARTER = 8, 4, 96
BATCH = 32
Row = dict[str, Any]


def write_data(arguments: argparse.Namespace, root: Path) -> None:
    """The composed images, and labels.csv with their splits and labels."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    places = [(place.name, [place]) for place in sorted(arguments.caltech.iterdir())[:CALTECH]]
    for breed in sorted((arguments.dogs / "train").iterdir())[:DOGS]:
        places.append((breed.name, [arguments.dogs / split / breed.name for split in ("train", "valid", "test")]))
    things: dict[str, dict[str, list[Path]]] = {split: {} for split in ("train", "val", "test")}
    for name, folders in places:
        files = [file for folder in folders for file in sorted(folder.glob("*.jpg"))]
        label = name.split(".")[-1]
        things["test"][label] = files[::4]
        rest = [file for number, file in enumerate(files) if number % 4]
        things["val"][label] = rest[::6]
        things["train"][label] = [file for number, file in enumerate(rest) if number % 6]
    lines = ["file,split,label"]
    for split, count in (("train", arguments.train), ("val", arguments.train // 4), ("test", arguments.train)):
        for number in range(count):
            chosen = rng.choice(sorted(things[split]), rng.integers(1, 5), replace=False)
            canvas = Image.fromarray(rng.integers(90, 150, (2 * QUARTER, 2 * QUARTER, 3), dtype=np.uint8))
            for quarter, label in zip(rng.permutation(4), chosen, strict=False):
                files = things[split][label]
                with Image.open(files[rng.integers(len(files))]) as photo:
                    thing = photo.convert("RGB").resize((QUARTER, QUARTER))
                canvas.paste(thing, (int(quarter % 2) * QUARTER, int(quarter // 2) * QUARTER))
            canvas.save(root / f"{split}{number:04}.jpg", quality=92)
            lines.append(f"{split}{number:04}.jpg,{split},{';'.join(chosen)}")
    (root / "labels.csv").write_text("\n".join(lines))


def run_imgcls(row: Row, root: Path, weights: Path, folder: Path) -> Row:
    """`imgcls.fit` with the default options."""
    import imgcls

    overrides = [f"data={root / 'labels.csv'}", "data.label_separator=;", f"data.image_size={row['size']}"]
    overrides += [f"model.name={row['model']}", f"model.weights={weights}", f"trainer.max_epochs={row['epochs']}"]
    overrides += ["trainer.accelerator=cpu", "report=false", "export.onnx=false", "quiet=true", f"seed={row['seed']}"]
    began = time.monotonic()
    metrics = imgcls.fit(imgcls.compose([*overrides, "debug=off", f"run_dir={folder / 'run'}"])).metrics
    return {"map": metrics["test/map"], "validation": metrics["val/map"], "seconds": time.monotonic() - began}


def run_plain(row: Row, root: Path, weights: Path, folder: Path) -> Row:
    """The loop that people write."""
    import csv

    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader
    from torchmetrics.functional.classification import multilabel_average_precision
    from torchvision.transforms import v2

    torch.manual_seed(row["seed"])
    began, size, epochs = time.monotonic(), row["size"], row["epochs"]
    # The forty lines.
    rows = list(csv.DictReader((root / "labels.csv").open()))
    names = sorted({name for each in rows for name in each["label"].split(";")})
    config = timm.get_pretrained_cfg(row["model"])
    ends = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)]
    training = v2.Compose([v2.RandomResizedCrop(size, (0.35, 1.0)), v2.RandomHorizontalFlip(), *ends])
    testing = v2.Compose([v2.Resize(round(size / 0.875)), v2.CenterCrop(size), *ends])

    def read(each: dict[str, str], transform: Callable[..., Any]) -> tuple[Any, Any]:
        target = torch.tensor([float(name in each["label"].split(";")) for name in names])
        return transform(Image.open(root / each["file"]).convert("RGB")), target

    def loader(split: str, transform: Callable[..., Any], shuffle: bool = False) -> Any:
        images = [each for each in rows if each["split"] == split]
        return DataLoader(
            images,  # type: ignore[arg-type]
            BATCH,
            shuffle,
            collate_fn=lambda batch: [
                torch.stack(part) for part in zip(*(read(each, transform) for each in batch), strict=True)
            ],
        )

    network = timm.create_model(row["model"], num_classes=len(names))
    state = {name: value for name, value in load_file(weights).items() if not name.startswith("classifier.")}
    network.load_state_dict(state, strict=False)
    batches = loader("train", training, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.05)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-4, steps, pct_start=1 / epochs)

    def evaluate(split: str) -> float:
        network.eval()
        with torch.inference_mode():
            parts = [(network(images), labels) for images, labels in loader(split, testing)]
        logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return float(multilabel_average_precision(logits.sigmoid(), labels.long(), len(names)))

    best, best_state = -1.0, network.state_dict()
    for _ in range(epochs):
        network.train()
        for images, labels in batches:
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(network(images), labels).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if (validation := evaluate("val")) > best:
            best, best_state = validation, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(best_state)
    return {"map": evaluate("test"), "validation": best, "seconds": time.monotonic() - began}


def run_step(row: Row, root: Path, weights: Path, folder: Path) -> Row:
    """Forward, loss, backward and optimiser of both tasks in turns, on the same images; medians of processor time."""
    import torch

    from imgcls.models.backbones import create_network
    from imgcls.models.classifier import Classifier

    torch.manual_seed(row["seed"])
    classes = CALTECH + DOGS
    images, chosen = torch.randn(BATCH, 3, row["size"], row["size"]), torch.randint(classes, (BATCH,))
    labels = {"single": chosen, "several": (torch.rand(BATCH, classes) < 0.2).to(torch.uint8)}
    tasks = {}
    for name in labels:
        classifier = Classifier(create_network(row["model"], classes), multilabel=name == "several").train()
        tasks[name] = (classifier, torch.optim.AdamW(classifier.parameters(), lr=1e-5))
    times: dict[str, list[float]] = {name: [] for name in labels}
    for _ in range(row["epochs"] * 8):
        for name, (classifier, optimizer) in tasks.items():
            began = time.process_time()
            optimizer.zero_grad()
            classifier.training_step((images, labels[name]), 0).backward()
            optimizer.step()
            times[name].append(time.process_time() - began)
    single, several = (statistics.median(found[4:]) for found in times.values())
    return {"ratio": several / single, "seconds": several}


RUNS = {"imgcls": run_imgcls, "plain loop": run_plain, "step": run_step}


def main(words: list[str] | None = None) -> None:
    """Measure the missing rows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("caltech", "dogs", "weights"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--train", type=int, default=480)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--out", type=Path, default=Path("multilabel.jsonl"))
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.one is not None:
        found = RUNS[arguments.one["system"]](arguments.one, arguments.root, arguments.weights, arguments.folder)
        print(json.dumps(found))
        return
    shared = {name: getattr(arguments, name) for name in ("model", "epochs", "size", "train")}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in arguments.seeds:
            for system in arguments.systems:
                row = {"system": system, "seed": seed, **shared}
                if any(row.items() <= done.items() for done in read_rows(arguments.out)):
                    continue
                if system != "step" and not (Path(temporary) / "labels.csv").is_file():
                    write_data(arguments, Path(temporary))
                if (found := measure(row, arguments, Path(temporary), __file__)) is not None:
                    print(json.dumps(found), flush=True)
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(found) + "\n")
    print("| system | seeds | test mAP, or ratio | seconds |\n|---|---|---|---|")
    for system in SYSTEMS:
        rows = [row for row in read_rows(arguments.out) if row["system"] == system and shared.items() <= row.items()]
        if rows:
            values = [row["ratio"] if system == "step" else 100 * row["map"] for row in rows]
            spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
            seconds = statistics.mean(row["seconds"] for row in rows)
            print(f"| {system} | {len(rows)} | {statistics.mean(values):.4g}{spread} | {seconds:.3g} |")


if __name__ == "__main__":
    main()
