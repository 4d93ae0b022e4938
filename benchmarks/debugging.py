"""What watching costs: the time per training step with `debug=default` against `debug=off`.

    python benchmarks/debugging.py [--model resnet18] [--size 64] [--batch 32] [--steps 60] [--repeats 5] [--json FILE]

Both train the same network on the same batches, which are already in memory, with the callbacks of a run. Every fifth
step is observed, to measure many observations in few steps; the time by which an observed step exceeds the median of
its neighbours counts once per default interval. The overhead of steps that are not observed is added; the time that the
rules take at the end is reported separately. The speed of shared machines changes within seconds, so the two alternate,
all figures are medians, and CPU time, which other processes hardly change, is reported as well. Prints a table and one
line of JSON.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from results import command_line, report

import imgcls
from imgcls.callbacks.history import History
from imgcls.callbacks.timing import Timing
from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from imgcls.models.optim import AdamW

MAX_SHARE = 0.03  # of a step: the most that watching may take
EVERY = 5  # steps between two observed ones
WARM = 10  # steps that are not counted, since the first ones are all observed


@dataclass
class Training:
    """Times of one training."""

    unobserved: float
    """Seconds of the median step among those that are not observed."""
    observing: list[float]
    """Seconds by which each observed step exceeds the median of its neighbours."""
    end: float
    """Seconds after the last step, in the callbacks."""
    processor: float
    """CPU seconds per step, over all steps."""


class Clock(L.Callback):
    """Records the seconds of each step, including the other callbacks."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.last = self.processor_began = self.processor = self.end = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last, self.processor_began = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.last)
        self.last = now

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end = time.perf_counter() - self.last
        self.processor = time.process_time() - self.processor_began


def measure_training(watched: bool, options: argparse.Namespace, batches: list[Any]) -> Training:
    """Train once and return the times after the warm-up steps."""
    torch.manual_seed(0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        callbacks: list[L.Callback] = [Timing(), History(folder / "metrics.csv")]
        if watched:
            debug = imgcls.compose([f"debug.every={EVERY}"]).debug
            callbacks += instantiate(debug, folder=folder / "debug", _convert_="all")
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cuda" if torch.cuda.is_available() else "cpu",
            devices=1,
            gradient_clip_val=1.0,
            callbacks=[*callbacks, clock],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        loader = torch.utils.data.DataLoader(batches * (options.steps // len(batches)), batch_size=None)
        trainer.fit(Classifier(create_network(options.model, 10), optim=AdamW(lr=1e-4)), loader)
    warm = range(WARM, len(clock.steps))
    plain = [clock.steps[at] for at in warm if at % EVERY]
    return Training(
        statistics.median(plain),
        [clock.steps[at] - statistics.median(_neighbours(clock.steps, at)) for at in warm if at % EVERY == 0],
        clock.end,
        clock.processor / len(clock.steps),
    )


def _neighbours(steps: list[float], at: int) -> list[float]:
    return [steps[one] for one in range(max(0, at - EVERY + 1), min(len(steps), at + EVERY)) if one % EVERY]


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")

    shape = (options.batch, 3, options.size, options.size)
    batches = [(torch.randn(shape), torch.randint(0, 10, (options.batch,))) for _ in range(min(10, options.steps))]
    interval = int(imgcls.compose([]).debug.every)
    off, on = [], []
    print(f"{'ms':>8}{'per step, off':>14}{'on':>10}{'observing':>12}")
    for _ in range(options.repeats):
        off.append(measure_training(False, options, batches))
        on.append(measure_training(True, options, batches))
        row = (off[-1].unobserved, on[-1].unobserved, statistics.median(on[-1].observing))
        print(f"{'':8}{1e3 * row[0]:14.1f}{1e3 * row[1]:10.1f}{1e3 * row[2]:12.1f}", flush=True)
    step = statistics.median(one.unobserved for one in off)
    observing = statistics.median(extra for one in on for extra in one.observing) / interval / step
    others = statistics.median(b.unobserved / a.unobserved - 1 for a, b in zip(off, on, strict=True))
    processor = statistics.median(b.processor / a.processor - 1 for a, b in zip(off, on, strict=True))
    end = statistics.median(one.end for one in on) - statistics.median(one.end for one in off)
    print(f"observing one step in {interval}: {observing:.2%} of a step (at most {MAX_SHARE:.0%} in total)")
    print(f"steps that are not observed: {others:+.2%}; rules at the end: {end:.2f} s")
    print(f"CPU time, one step in {EVERY} observed: {processor:+.2%}")
    result: dict[str, Any] = {
        "benchmark": "debugging",
        "model": options.model,
        "size": options.size,
        "batch": options.batch,
        "steps": options.steps,
        "repeats": options.repeats,
        "torch": torch.__version__,
        "milliseconds_per_step": round(1e3 * step, 2),
        "observing": round(observing, 5),
        "unobserved": round(others, 5),
        "cost": round(observing + others, 5),
        "end_seconds": round(end, 3),
        "processor_at_5": round(processor, 5),
        "within_limit": observing + others <= MAX_SHARE,
    }
    report(result, options.json)


if __name__ == "__main__":
    main()
