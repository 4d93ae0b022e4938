"""What a teacher adds to a small student: the same recipe with and without it, and with images without labels.

    python benchmarks/distillation.py --student FILE --teacher FILE [--caltech DIR] [--dogs DIR] [--cifar DIR]
        [--seeds 0 1 2] [--epochs 5] [--size 64] [--teacher-size 160] [--set OPTION=VALUE …] [--out FILE]

The teacher is the backbone of --teacher, frozen, with a solved head, trained once per data set; the student fine-tunes
--student. The data sets are those of `finetuning.py`; the images without labels are the training images that it leaves
out of `dogs5` and `cifar1000`. --set adds options to the student with a teacher. One thread. Each row is a line of JSON
in --out, and is not measured again; "epoch_seconds" is the median of the epochs. Prints a table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from finetuning import link, pictures, read_rows, write_data

SETS = ("caltech", "dogs5", "cifar1000")
KEYS = ("data", "system", "seed", "epochs", "size", "teacher_size", "set")
COMMON = ["data=imagefolder", "trainer.accelerator=cpu", "report=false", "export.onnx=false", "quiet=true"]

Row = dict[str, Any]


def write_unlabelled(name: str, arguments: argparse.Namespace, root: Path) -> Path | None:
    """A folder of links to up to 20 further training images of each class; None if the data set has none."""
    places = {"dogs5": arguments.dogs, "cifar1000": arguments.cifar}
    if name not in places:
        return None
    first = 5 if name == "dogs5" else 100
    target = root.with_name(f"{root.name}-unlabelled")
    for place in sorted((places[name] / "train").iterdir()) if not target.exists() else ():
        link(target, ".", place.name, pictures(place)[first : first + (20 if name == "dogs5" else 300)])
    return target


def train(overrides: list[str], folder: Path) -> Any:
    """The finished run of these overrides."""
    import imgcls

    return imgcls.fit(imgcls.compose([*COMMON, *overrides, f"run_dir={folder}"]))


def measure(row: Row, arguments: argparse.Namespace, work: Path, root: Path) -> Row:
    """The row with its figures."""
    resize = row["data"] == "cifar1000"
    sizes = {"student": row["size"], "teacher": row["teacher_size"]}
    student, teacher = (
        [f"data.root={root}", f"data.image_size={size}", *([f"data.resize={size}"] if resize else [])]
        for size in sizes.values()
    )
    frozen = ["model.name=tf_efficientnet_lite2", f"model.weights={arguments.teacher}", "model.freeze=backbone"]
    taught = train([*teacher, *frozen], work / "teacher")
    overrides = [*student, "model.name=tf_efficientnet_lite0", f"model.weights={arguments.student}"]
    overrides += [f"seed={row['seed']}", f"trainer.max_epochs={row['epochs']}"]
    if row["system"] != "student alone":
        overrides += [f"loss.teacher={taught.folder}", *row["set"]]
    if "unlabelled" in row["system"]:
        overrides.append(f"data.unlabeled={write_unlabelled(row['data'], arguments, root)}")
    with tempfile.TemporaryDirectory(dir=work) as folder:
        run = train(overrides, Path(folder) / "run")
        seconds = statistics.median(epoch["seconds"] for epoch in run.history)
        found = {"accuracy": run.metrics["test/accuracy"], "validation": run.metrics["val/accuracy"]}
    return {**row, **found, "epoch_seconds": round(seconds, 2), "teacher": taught.metrics["test/accuracy"]}


def table(rows: list[Row]) -> list[str]:
    """Mean and standard deviation of the test accuracy of each system on each data set, in percent."""
    names = [name for name in SETS if any(row["data"] == name for row in rows)]
    lines = ["| system | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for system in dict.fromkeys((row["system"], *row["set"]) for row in rows):
        cells = []
        for name in names:
            found = [row for row in rows if (row["system"], *row["set"]) == system and row["data"] == name]
            values = [100 * row["accuracy"] for row in found]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            seconds = statistics.median(row["epoch_seconds"] for row in found) if found else 0.0
            cells.append(f"{statistics.mean(values):.1f}{spread}, {seconds:.1f} s per epoch" if found else "")
        lines.append(f"| {' '.join(system)} | " + " | ".join(cells) + " |")
    for name in names:
        lines.append(f"{name}: the teacher has {next(row['teacher'] for row in rows if row['data'] == name):.1%}.")
    return lines


def main(words: list[str] | None = None) -> None:
    """Measure the missing rows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("student", "teacher", "caltech", "dogs", "cifar"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--teacher-size", type=int, default=160)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--systems", nargs="+", default=["student alone", "with a teacher", "and unlabelled images"])
    parser.add_argument("--work", type=Path, help="a folder for data, cache and teachers that later calls find again")
    parser.add_argument("--out", type=Path, default=Path("distillation.jsonl"))
    arguments = parser.parse_args(words)
    import torch

    torch.set_num_threads(1)
    sources = {"caltech": arguments.caltech, "dogs5": arguments.dogs, "cifar1000": arguments.cifar}
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        os.environ["IMGCLS_CACHE"] = str(work / "cache")
        for seed in arguments.seeds:
            for name in (name for name in SETS if sources[name] is not None):
                root = work / name / "images"
                if not root.exists():
                    write_data(name, arguments, root)
                for system in arguments.systems:
                    row: Row = {"data": name, "system": system, "seed": seed, "epochs": arguments.epochs}
                    row |= {"size": arguments.size, "teacher_size": arguments.teacher_size}
                    row["set"] = arguments.set if system != "student alone" else []
                    done = any(all(old[key] == row[key] for key in KEYS) for old in read_rows(arguments.out))
                    if done or (name == "caltech" and "unlabelled" in system):
                        continue
                    found = measure(row, arguments, work / name, root)
                    print(json.dumps(found), flush=True)
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(found) + "\n")
    same = {"epochs": arguments.epochs, "size": arguments.size, "teacher_size": arguments.teacher_size}
    rows = [row for row in read_rows(arguments.out) if all(row[key] == value for key, value in same.items())]
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
