"""How imgcls grows: seconds, CPU seconds, peak memory and bytes against N, and what follows for ImageNet-1k and -21k.

    python benchmarks/scale.py [--parts metrics,…] [--sizes 100,1000] [--json FILE]

Each part makes its own data, and is measured in a process of its own for every N. "peak" is the resident memory above
what the process had before the measured work, mapped files included, and "bytes" what the work left on disk. The
exponent is the slope of CPU seconds over N on logarithmic scales, from the two largest sizes; ImageNet-1k (1.28 M
images, 1,000 classes) and ImageNet-21k (14.2 M, 21,841) are extrapolated with it. Prints a table for each part, and one
line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from results import command_line, report

if TYPE_CHECKING:
    import numpy as np

IMAGENET = {"images": {"1k": 1_281_167, "21k": 14_197_122}, "classes": {"1k": 1_000, "21k": 21_841}}
PARTS: dict[str, Part] = {}

Work = Callable[[], object]
"""What is measured."""


@dataclass(frozen=True)
class Part:
    """Something whose growth is measured.

    Args:
        title: of the table.
        unit: what N counts: images, classes, …
        sizes: the values of N.
        prepare: makes the data for N in a folder and returns the work to measure.
    """

    title: str
    unit: str
    sizes: tuple[int, ...]
    prepare: Callable[[int, Path], Work]


@dataclass(frozen=True)
class Figures:
    """What one measurement found."""

    n: int
    seconds: float
    cpu: float
    """Seconds of all threads and child processes."""
    peak: int
    """Bytes of resident memory above those before, mapped files included."""
    bytes: int
    """Bytes that were left on disk."""


def part(title: str, unit: str, *sizes: int) -> Callable[[Callable[[int, Path], Work]], Callable[[int, Path], Work]]:
    """Add the decorated function to PARTS, under its name."""

    def add(prepare: Callable[[int, Path], Work]) -> Callable[[int, Path], Work]:
        PARTS[prepare.__name__] = Part(title, unit, sizes, prepare)
        return prepare

    return add


# ---- the parts


@part("evaluation metrics, 10 batches of 64, trainer.deterministic=warn", "classes", 100, 1_000, 10_000, 21_841)
def metrics(n: int, folder: Path) -> Work:
    import torch

    from imgcls.models.metrics import evaluation_metrics, update_metrics

    torch.use_deterministic_algorithms(True, warn_only=True)
    logits, labels, losses = torch.randn(64, n), torch.randint(0, n, (64,)), torch.rand(64)
    collection = evaluation_metrics(n, "val/")
    update_metrics(collection, logits, labels, losses)

    def work() -> None:
        for _ in range(10):
            update_metrics(collection, logits, labels, losses)

    return work


@part("search: the last 10 of N trials, which train nothing", "trials", 20, 200, 2_000)
def search(n: int, folder: Path) -> Work:
    from optuna.trial import create_trial

    from imgcls.sweeps.options import SearchOptions
    from imgcls.sweeps.outcome import Announcer
    from imgcls.sweeps.space import parse_space
    from imgcls.sweeps.study import Claim, Study
    from imgcls.sweeps.worker import work as run_trials

    space = parse_space(["optim.lr=tag(log,interval(1e-3,1))", "data.batch_size=32,64"])[0]
    options = SearchOptions(objectives={"val/accuracy": "max"}, trials=n + 1)
    with contextlib.redirect_stdout(sys.stderr):
        study = Study("scale", options, space, folder)
    left = 0

    def launch(claims: Sequence[Claim]) -> list[BaseException | None]:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        (claim,) = claims
        claim.folder.mkdir(parents=True)
        (claim.folder / "status.json").write_text('{"state": "finished"}')
        (claim.folder / "metrics.json").write_text(f'{{"epochs": 2, "val/accuracy": {claim.number % 7 / 10}}}')
        return [None]

    def run(trials: int, announce: Announcer) -> None:
        nonlocal left
        left = trials
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(KeyboardInterrupt):
            run_trials(study, launch, announce=announce)

    def announcer() -> Announcer:
        with contextlib.redirect_stdout(sys.stderr):
            return Announcer(study, [])

    run(5, announcer())  # then others like them, since 2,000 take minutes
    last = next(trial for trial in reversed(study.optuna.get_trials()) if trial.state.is_finished())
    for number in range(7, n - 10):
        params = {"optim.lr": 10 ** -(number % 997 / 997), "data.batch_size": (32, 64)[number % 2]}
        study.optuna.add_trial(
            create_trial(
                params={name: params.get(name, value) for name, value in last.params.items()},
                distributions=last.distributions,
                values=[number % 100 / 100],
                user_attrs=last.user_attrs,
            )
        )
    announce = announcer()
    run(1, announce)  # which writes a line for each of the others
    return lambda: run(10, announce)


def _large_file(n: int, folder: Path) -> Path:
    """A file of N random images of 224 px, out of the page cache."""
    import numpy as np

    file, block = folder / "pixels.u8", np.random.default_rng(0).integers(0, 256, (256, 224, 224, 3), dtype=np.uint8)
    with file.open("wb") as opened:
        for start in range(0, n, len(block)):
            opened.write(block[: n - start].tobytes())
        opened.flush()
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return file


@part("results of 10,000 test images: predictions, logits, confusion", "classes", 100, 1_000, 10_000, 21_841)
def outputs(n: int, folder: Path) -> Work:
    from types import SimpleNamespace

    import numpy as np
    import torch

    from imgcls.data.sources import Split
    from imgcls.models.metrics import Collector
    from imgcls.training.results import write_predictions

    count, names = 10_000, tuple(f"n{number:08}" for number in range(n))
    labels = torch.arange(count) % n
    split = Split(tuple(f"test/{number:08}.jpg" for number in range(count)), labels.numpy(), np.empty((count, 0, 0, 3)))

    def work() -> None:
        collector = Collector(n)
        for part in torch.arange(count).split(64):
            generator = torch.Generator().manual_seed(int(part[0]))
            collector.add(None, torch.randn(len(part), n, generator=generator), labels[part], torch.ones(len(part)))
        found = collector.gather(torch.device("cpu"))
        write_predictions(
            folder,
            split,
            SimpleNamespace(test_outputs=found, class_names=names, test_class_accuracy=found.class_accuracy),  # type: ignore[arg-type]
        )

    return work


def _duplicates(thumbnails: np.ndarray) -> Work:
    from imgcls.data import duplicates

    cut = len(thumbnails) * 4 // 5
    return lambda: duplicates._find_nearest(thumbnails[cut:], thumbnails[:cut])


@part("near-duplicates of photographs", "images", 25_000, 50_000, 100_000)
def duplicates_photographs(n: int, folder: Path) -> Work:
    import numpy as np

    dice = np.random.default_rng(0)
    coarse = dice.integers(0, 256, (n, 4, 4, 3)).astype(np.float32)  # large areas, with a little detail in them
    images = coarse.repeat(2, axis=1).repeat(3, axis=2)[:, :, :9] + dice.normal(0, 12, (n, 8, 9, 3))
    return _duplicates(images.clip(0, 255).astype(np.uint8))


@part("near-duplicates of objects on white", "images", 25_000, 50_000, 100_000)
def duplicates_on_white(n: int, folder: Path) -> Work:
    import numpy as np

    dice = np.random.default_rng(0)
    height, width = dice.integers(2, 7, (n, 1, 1)), dice.integers(2, 8, (n, 1, 1))
    inside = (abs(np.arange(8)[:, None] - 3.5) < height / 2) & (abs(np.arange(9) - 4) < width / 2)
    colours = dice.uniform(0, 255, (n, 1, 1, 3)) + dice.normal(0, 30, (n, 8, 1, 1)) + dice.normal(0, 25, (n, 8, 9, 3))
    return _duplicates(np.where(inside[..., None], colours, 255).clip(0, 255).astype(np.uint8))


@part("a table of labels that is opened, with files in a thousand folders", "images", 100_000, 1_000_000)
def tables(n: int, folder: Path) -> Work:
    from imgcls.data.table import Table

    file, folders = folder / "labels.csv", [folder / f"{number:03}" for number in range(1_000)]
    for each in folders:
        each.mkdir()
    with file.open("w") as opened:
        opened.write("file,label,patient\n")
        for number in range(n):
            (folders[number % 1_000] / f"{number}.jpg").touch()
            opened.write(f"{number % 1_000:03}/{number}.jpg,class {number % 500},{number // 4}\n")
    return lambda: Table(table=file, group="patient", cache=folder).source


@part("a folder of images that is opened, with a thousand classes", "images", 100_000, 1_000_000)
def folders(n: int, folder: Path) -> Work:
    from imgcls.data.imagefolder import ImageFolder

    root = folder / "images"
    for number in range(1_000):
        (root / f"n{number:08}").mkdir(parents=True)
    for number in range(n):
        (root / f"n{number % 1_000:08}" / f"n{number % 1_000:08}_{number // 1_000}.JPEG").touch()
    data = ImageFolder(root, cache=folder / "cache")
    return lambda: data.source


@part("store on disk, half of the images at random, out of the page cache", "images", 4_000, 16_000)
def cold_store(n: int, folder: Path) -> Work:
    import numpy as np
    import torch

    from imgcls.data.stores.store import ArrayStore

    file = _large_file(n, folder)
    pixels = np.memmap(file, dtype=np.uint8, mode="r", shape=(n, 224, 224, 3))
    store = ArrayStore(pixels, np.ones(n, dtype=np.float32))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: n // 2]

    def work() -> None:
        for batch in order.split(64):
            store.gather(batch)

    return work


@part("the same images with 8 threads of preadv", "images", 4_000, 16_000)
def cold_preadv(n: int, folder: Path) -> Work:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch

    file, size = _large_file(n, folder), 224 * 224 * 3
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: n // 2].tolist()
    out = np.empty((64, size), dtype=np.uint8)

    def work() -> None:
        with file.open("rb") as opened, ThreadPoolExecutor(8) as pool:
            read = lambda place: os.preadv(opened.fileno(), [out[place % 64].data], order[place] * size)  # noqa: E731
            for _ in pool.map(read, range(len(order))):
                pass

    return work


# ---- measuring


def measure(name: str, n: int) -> Figures:
    """Measure part `name` for N in this process."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        work = PARTS[name].prepare(n, folder)
        size, memory, cpu = occupied(folder), _forget_peak(), _cpu_seconds()
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        return Figures(n, seconds, _cpu_seconds() - cpu, max(0, _peak() - memory), occupied(folder) - size)


def occupied(folder: Path) -> int:
    """Bytes on disk of the files in `folder`."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _forget_peak() -> int:
    """Reset the peak of this process's memory, and return its present memory in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def exponent(figures: Sequence[Figures]) -> float:
    """The power of N with which CPU seconds grow, from the two largest sizes; NaN for one size."""
    if len(figures) < 2:
        return math.nan
    first, last = sorted(figures, key=lambda figure: figure.n)[-2:]
    return math.log(max(last.cpu, 1e-6) / max(first.cpu, 1e-6)) / math.log(last.n / first.n)


def extrapolate(figures: Sequence[Figures], unit: str) -> dict[str, float]:
    """CPU seconds for ImageNet-1k and -21k, where N counts images or classes."""
    power, last = exponent(figures), max(figures, key=lambda figure: figure.n)
    if math.isnan(power):
        return {}
    return {name: last.cpu * (n / last.n) ** power for name, n in IMAGENET.get(unit, {}).items()}


def table(title: str, unit: str, figures: Sequence[Figures]) -> str:
    """The figures of a part as text."""
    lines = [f"\n{title}", f"  {unit:>12}{'seconds':>12}{'CPU s':>12}{'peak, MB':>12}{'disk, MB':>12}"]
    for figure in figures:
        sizes = f"{figure.peak / 1e6:12,.1f}{figure.bytes / 1e6:12,.1f}"
        lines.append(f"  {figure.n:12,}{figure.seconds:12,.3f}{figure.cpu:12,.3f}{sizes}")
    beyond = [f"ImageNet-{name}: {cpu:,.1f} CPU s" for name, cpu in extrapolate(figures, unit).items()]
    return "\n".join([*lines, "  " + ", ".join([f"exponent {exponent(figures):.2f}", *beyond])])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the figures."""
    parser = command_line(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--sizes", help="instead of each part's own")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(asdict(measure(options.measure, int(options.sizes)))))
        return
    found: dict[str, object] = {}
    for name in options.parts.split(","):
        if name not in PARTS:
            parser.error(f"unknown part {name!r}: {', '.join(PARTS)}")
        sizes = [int(size) for size in options.sizes.split(",")] if options.sizes else PARTS[name].sizes
        figures = []
        for size in sizes:
            command = [sys.executable, __file__, "--measure", name, "--sizes", str(size)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ).stdout
            figures.append(Figures(**json.loads(output.splitlines()[-1])))
        print(table(PARTS[name].title, PARTS[name].unit, figures), flush=True)
        found[name] = {
            "figures": [asdict(figure) for figure in figures],
            "exponent": exponent(figures),
            "cpu": extrapolate(figures, PARTS[name].unit),
        }
    report({"benchmark": "scale", "cpus": os.cpu_count(), "parts": found}, options.json)


if __name__ == "__main__":
    main()
