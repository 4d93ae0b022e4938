"""CIFAR-10 to 94 and 96 % on one GPU: airbench's published scripts and imgcls's recipes, in turns.

    python benchmarks/race.py --airbench DIR --cifar10 DIR [--runs 5] [--targets 94 96] [--json FILE]

--airbench is a checkout of KellerJordan/cifar10-airbench with airbench94_muon.py and airbench96_faster.py, which is run
as it is: read it first. --cifar10 has `cifar-10-batches-py`. Of each target the script runs first, then
`experiment=cifar10_fast` or `cifar10_accurate`, each --runs times after one that is not counted, in which networks are
compiled. "seconds" of a script are its own: steps, whitening and the last evaluation, without compilation and without
the evaluation after each epoch. Those of imgcls are `wall_seconds`: everything from the first step to the end of the
training, with callbacks, checkpoint and recorder. Prints a table and one line of JSON: mean and standard deviation of
accuracy and seconds, and the ratio of the seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from results import command_line, report

import imgcls

ENTRANTS = {94: ("airbench94_muon.py", "cifar10_fast"), 96: ("airbench96_faster.py", "cifar10_accurate")}
BATCHES = "cifar-10-batches-py"


class Finish(NamedTuple):
    """The end of one training: test accuracy and seconds."""

    accuracy: float
    seconds: float


def read_finishes(lines: Iterator[str]) -> Iterator[Finish]:
    """The last line of each training in the table that airbench's scripts print."""
    header: list[str] = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "epoch" in cells:
            header = cells
        elif len(cells) == len(header) and cells[header.index("epoch")] == "eval":
            row = dict(zip(header, cells, strict=True))
            seconds = next(value for name, value in row.items() if name.endswith("time_seconds"))
            yield Finish(float(row["tta_val_acc"]), float(seconds))


def run_published(script: Path, cifar10: Path, runs: int) -> list[Finish]:
    """The first `runs` trainings of a script, after the one in which it compiles; then it is stopped."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "cifar10").mkdir()
        (folder / "cifar10" / BATCHES).symlink_to((cifar10 / BATCHES).resolve())
        command = [sys.executable, "-u", str(script.resolve())]
        process = stack.enter_context(subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True))
        stack.callback(process.kill)
        assert process.stdout is not None
        found = []
        for finish in read_finishes(iter(process.stdout)):
            found.append(finish)
            if len(found) > runs:
                return found[1:]
        raise SystemExit(f"{script} ended after {len(found)} trainings, with exit code {process.wait()}.")


def run_ours(experiment: str, cifar10: Path, runs: int, overrides: list[str]) -> list[Finish]:
    """Trainings with the seeds from 0, after one that is not counted."""
    found = []
    for seed in (0, *range(runs)):
        with tempfile.TemporaryDirectory() as folder:
            words = [f"experiment={experiment}", f"data.root={cifar10}", f"seed={seed}", f"run_dir={folder}/run"]
            run = imgcls.fit([*words, "report=false", "export.onnx=false", *overrides])
            found.append(Finish(run.metrics["test/accuracy"], run.metrics["wall_seconds"]))
    return found[1:]


def summary(finishes: list[Finish]) -> dict[str, float]:
    """Means and standard deviations."""
    values = {}
    for name, numbers in zip(Finish._fields, zip(*finishes, strict=True), strict=True):
        values[name] = statistics.mean(numbers)
        values[f"{name}_std"] = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return values


def main(words: list[str] | None = None) -> None:
    """Let both run, and compare."""
    parser = command_line(__doc__)
    parser.add_argument("--airbench", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--targets", type=int, nargs="+", choices=sorted(ENTRANTS), default=sorted(ENTRANTS))
    parser.add_argument("--overrides", nargs="*", default=[], help="further options of imgcls's recipes")
    arguments = parser.parse_args(words)
    if not (arguments.cifar10 / BATCHES).is_dir():
        raise SystemExit(f"--cifar10={arguments.cifar10} has no folder {BATCHES}.")
    results = {}
    for target in arguments.targets:
        script, experiment = ENTRANTS[target]
        published = summary(run_published(arguments.airbench / script, arguments.cifar10, arguments.runs))
        ours = summary(run_ours(experiment, arguments.cifar10, arguments.runs, arguments.overrides))
        results[str(target)] = {
            "published": published,
            "imgcls": ours,
            "ratio": ours["seconds"] / published["seconds"],
        }
        for name, values in ((script, published), (f"experiment={experiment}", ours)):
            print(
                f"{target} %  {name:28} {values['accuracy']:.2%} ± {values['accuracy_std']:.2%}  "
                f"{values['seconds']:8.2f} ± {values['seconds_std']:.2f} s",
                flush=True,
            )
        print(f"{target} %  ratio of the seconds: {results[str(target)]['ratio']:.2f}", flush=True)
    report({"runs": arguments.runs, "results": results}, arguments.json)


if __name__ == "__main__":
    main()
