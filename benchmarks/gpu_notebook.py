"""Shared by the parts of gpu.py: the scale of the measurements, and where they are stored."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import imgcls
from imgcls.runs.run import Run
from imgcls.system.files import atomic_write_text

Values = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Scale of the measurements."""

    device: str = "cuda"
    models: tuple[str, ...] = ("resnet18", "resnet50", "efficientnet_b2")
    size: int = 224
    batch: int = 256
    steps: int = 15
    repeats: int = 3
    compiled: bool = True
    photographs: tuple[int, int] = (800, 8)
    """Number of generated JPEGs, and number of copies of each."""
    seeds: tuple[tuple[str, int], ...] = (("cifar10_fast", 5), ("cifar10_accurate", 2))
    """Recipes, and how often each trains; airbench's scripts as often."""
    recipe: tuple[str, ...] = ()
    """Overrides that shrink the recipes of part 2."""
    memory: float = 5e9
    """Bytes of device memory that part 3 may use."""
    features: int = 50_000
    """Images of part 6."""
    search: tuple[int, int, int] = (4000, 2000, 224)
    """Training and validation images of part 7, and their side, px."""
    requests: int = 4000

    @property
    def middle(self) -> str:
        """The network of the parts that have one: ResNet50."""
        return self.models[len(self.models) // 2]


SMALL = {
    "models": ("test_resnet",),
    "size": 32,
    "batch": 8,
    "steps": 2,
    "repeats": 2,
    "compiled": False,
    "photographs": (12, 1),
    "seeds": (("cifar10_fast", 1), ("cifar10_accurate", 1)),
    "features": 64,
    "search": (40, 20, 32),
    "requests": 80,
    "recipe": ("model.options={widths: [8, 16, 16]}", "data.batch_size=32", "trainer.max_epochs=1", "optim.lr=1.0"),
}


class Notebook:
    """Measurements by name, each written to disk when it is finished.

    Args:
        folder: of `results.json`, and of the runs while they are measured.
        minutes: after which no measurement starts.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.deadline = folder, time.monotonic() + 60 * minutes
        self.file = folder / "results.json"
        kept: dict[str, Any] = json.loads(self.file.read_text()) if self.file.is_file() else {}
        self.facts: Values = kept.get("facts", {})
        self.values: dict[str, Values] = kept.get("values", {})
        self.left: list[str] = []

    def expect(self, facts: Values) -> None:
        """Keep existing measurements only if they were made under the same `facts`."""
        if self.facts and self.facts != facts:
            print(f"{self.file} is from another machine, scale or data set: starting over.", file=sys.stderr)
            self.values = {}
        self.facts = facts

    def measure(self, name: str, work: Callable[[], Values]) -> None:
        """Run a missing measurement; a failure is recorded, and the next call tries again."""
        if name in self.values and "error" not in self.values[name]:
            return
        if time.monotonic() > self.deadline:
            self.left.append(name)
            return
        began = time.monotonic()
        try:
            self.values[name] = work()
        except Exception as error:  # the other measurements are still worth having
            self.values[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        print(
            f"{name}: {json.dumps(self.values[name])} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True
        )
        atomic_write_text(self.file, json.dumps({"facts": self.facts, "values": self.values}, indent=1) + "\n")
        release()

    def tidy(self) -> None:
        """Remove the files created for the measurements."""
        for name in ("run", "cache", "photographs", "model.onnx", "model.onnx.data", "search", "model", "requests"):
            place = self.folder / name
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)

    def run(self, *overrides: str) -> Run:
        """Train with `imgcls.fit` in a temporary folder."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        options = [*overrides, f"run_dir={self.folder / 'run'}", "export.onnx=false"]
        with silence():
            return imgcls.fit(imgcls.compose(options))


def release() -> None:
    """Free the device's memory, and undo the process-wide settings of a trainer."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress the output of the runs."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield


def spread(rates: Sequence[float]) -> Values:
    """Mean and standard deviation of repeats."""
    deviation = statistics.stdev(rates) if len(rates) > 1 else 0.0
    return {"mean": round(statistics.mean(rates), 2), "std": round(deviation, 2), "repeats": len(rates)}


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory() -> float | None:
    """Peak memory allocated on the device, GB."""
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None


def autocast(device: str) -> Any:
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def trainer_overrides(scale: Scale) -> list[str]:
    return [
        f"trainer.accelerator={scale.device}",
        "trainer.devices=1",
        "trainer.deterministic=false",
        "trainer.benchmark=true",
        f"trainer.max_epochs={1 + scale.repeats}",
        "optim.warmup_epochs=0",
        "model.pretrained=false",
        "checkpoint.top_k=1",
        f"data.image_size={scale.size}",
        f"data.batch_size={scale.batch}",
        "data.val_fraction=0.0",
        "data.store=device",
    ]


def epoch_rates(run: Run, scale: Scale, devices: int = 1) -> Values:
    """Images per second over all epochs after the first; an epoch ends when its metrics have been read."""
    step = scale.batch * devices
    return spread([step * (later["step"] - row["step"]) / later["seconds"] for row, later in pairwise(run.history)])
