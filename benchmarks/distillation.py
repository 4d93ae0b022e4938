"""What a teacher adds to a small student: the same recipe with and without it, and with images without labels.

    python benchmarks/distillation.py --images DIR --student FILE --teacher FILE [--labels all 5] [--seeds 0 1 2]
        [--epochs 5] [--size 64] [--teacher-size 128] [--set OPTION=VALUE …] [--work DIR] [--out FILE]

--images contains a folder per class. Every fifth image is for the test, every tenth of the rest for validation. With
--labels 5, only five training images of each class have a label, and the others are those without labels. The teacher
is the backbone of --teacher, frozen, with a head solved on the labelled images; the student fine-tunes --student, with
the default options and those of --set where it has a teacher. One thread. Each row is a line of JSON in --out and is
not measured again; "epoch_seconds" is the median of the epochs. Prints a table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from finetuning import link, pictures, read_rows

SYSTEMS = ("student alone", "with a teacher", "with a teacher and unlabelled images")
KEYS = ("images", "labels", "system", "seed", "epochs", "size", "teacher_size", "set")
COMMON = ["data=imagefolder", "trainer.accelerator=cpu", "report=false", "export.onnx=false", "quiet=true"]

Row = dict[str, Any]


def write_data(images: Path, labels: str, root: Path) -> None:
    """The folders images/train, val and test, and unlabelled, as links."""
    for place in sorted(images.iterdir()):
        files = pictures(place)
        rest = [file for number, file in enumerate(files) if number % 5]
        train = [file for number, file in enumerate(rest) if number % 10]
        count = len(train) if labels == "all" else int(labels)
        link(root / "images", "test", place.name, files[::5])
        link(root / "images", "val", place.name, rest[::10])
        link(root / "images", "train", place.name, train[:count])
        link(root, "unlabelled", place.name, train[count:])


def train(overrides: list[str], folder: Path) -> Any:
    """The finished run of these overrides."""
    import imgcls

    return imgcls.fit(imgcls.compose([*COMMON, *overrides, f"run_dir={folder}"]))


def measure(row: Row, arguments: argparse.Namespace, root: Path) -> Row:
    """The row with its figures."""
    images = f"data.root={root / 'images'}"
    frozen = [f"model.name={arguments.teacher_model}", f"model.weights={arguments.teacher}", "model.freeze=backbone"]
    size = row["teacher_size"]
    teacher = train([images, f"data.image_size={size}", *frozen], root / f"teacher-{size}")
    overrides = [images, f"model.name={arguments.student_model}", f"model.weights={arguments.student}"]
    overrides += [f"data.image_size={row['size']}", f"seed={row['seed']}", f"trainer.max_epochs={row['epochs']}"]
    if row["system"] != "student alone":
        overrides += [f"loss.teacher={teacher.folder}", *row["set"]]
    if "unlabelled" in row["system"]:
        overrides.append(f"data.unlabeled={root / 'unlabelled'}")
    with tempfile.TemporaryDirectory(dir=root) as folder:
        run = train(overrides, Path(folder) / "run")
        found = {"accuracy": run.metrics["test/accuracy"], "validation": run.metrics["val/accuracy"]}
        seconds = statistics.median(epoch["seconds"] for epoch in run.history)
    return {**row, **found, "epoch_seconds": round(seconds, 2), "teacher": teacher.metrics["test/accuracy"]}


def table(rows: list[Row]) -> list[str]:
    """Mean and standard deviation of the test accuracy of each system with each number of labels, in percent."""
    columns = list(dict.fromkeys(row["labels"] for row in rows))
    lines = ["| system | " + " | ".join(f"{name} labels per class" for name in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for system, *options in dict.fromkeys((row["system"], *row["set"]) for row in rows):
        cells = []
        for name in columns:
            same = {"labels": name, "system": system, "set": options}
            found = [row for row in rows if all(row[key] == value for key, value in same.items())]
            values = [100 * row["accuracy"] for row in found]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            seconds = statistics.median(row["epoch_seconds"] for row in found) if found else 0.0
            cells.append(f"{statistics.mean(values):.1f}{spread}, {seconds:.1f} s per epoch" if found else "")
        lines.append(f"| {' '.join([system, *options])} | " + " | ".join(cells) + " |")
    teachers = [next(row["teacher"] for row in rows if row["labels"] == name) for name in columns]
    return [*lines, "| the teacher | " + " | ".join(f"{100 * accuracy:.1f}" for accuracy in teachers) + " |"]


def main(words: list[str] | None = None) -> None:
    """Measure the missing rows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "student", "teacher"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--student-model", default="tf_efficientnet_lite0")
    parser.add_argument("--teacher-model", default="tf_efficientnet_lite2")
    parser.add_argument("--labels", nargs="+", default=["all", "5"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--teacher-size", type=int, default=128)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--work", type=Path, help="a folder for images, cache and teachers that later calls find again")
    parser.add_argument("--out", type=Path, default=Path("distillation.jsonl"))
    arguments = parser.parse_args(words)
    import torch

    torch.set_num_threads(1)
    shared = {"images": arguments.images.name, "epochs": arguments.epochs, "size": arguments.size}
    shared["teacher_size"] = arguments.teacher_size
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        os.environ["IMGCLS_CACHE"] = str(work / "cache")
        for seed in arguments.seeds:
            for labels in arguments.labels:
                root = work / arguments.images.name / labels
                if not root.exists():
                    write_data(arguments.images, labels, root)
                for system in arguments.systems:
                    options = arguments.set if system != "student alone" else []
                    row = {**shared, "labels": labels, "system": system, "seed": seed, "set": options}
                    done = any(all(old[key] == row[key] for key in KEYS) for old in read_rows(arguments.out))
                    if done or (labels == "all" and "unlabelled" in system):
                        continue
                    found = measure(row, arguments, root)
                    print(json.dumps(found), flush=True)
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(found) + "\n")
    rows = [row for row in read_rows(arguments.out) if all(row[key] == value for key, value in shared.items())]
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
