"""What watching costs: the time of a training step with `debug=default` against `debug=off`.

    python benchmarks/debugging.py [--model resnet18] [--size 64] [--batch 32] [--steps 60] [--repeats 5] [--json FILE]

Both train the same network on the same batches, which are in memory already, with the callbacks that a run has. So that
many observations are measured in few steps, each fifth step is observed; what an observed step takes more than the
median of its neighbours counts once in the default interval. To that comes what watching adds to the steps that it does
not observe, and the look of the rules at the end. Machines that others use too change their speed within seconds: so
the trainings take turns, all is medians, and the processor's time, which others hardly change, is told beside it.
Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
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

import imgcls
from imgcls.callbacks.history import History
from imgcls.callbacks.timing import Timing
from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from imgcls.models.optim import AdamW

MOST = 0.03  # of a step: what watching may cost
EVERY = 5  # steps between two that are observed
WARM = 10  # steps that are not counted; the first ones are all observed


@dataclass
class Training:
    """What one training took."""

    unobserved: float
    """Seconds of the median step that is not observed."""
    observing: list[float]
    """Seconds that each observed step took more than its neighbours."""
    end: float
    """Seconds after the last step, in the callbacks."""
    processor: float
    """Processor's seconds of a step, observed ones among them as often as they were."""


class Clock(L.Callback):
    """The seconds of each step, with what the other callbacks do in it."""

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


def trained(watched: bool, options: argparse.Namespace, batches: list[Any]) -> Training:
    """Train once, and say what the steps took after those that warm up."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")

    shape = (options.batch, 3, options.size, options.size)
    batches = [(torch.randn(shape), torch.randint(0, 10, (options.batch,))) for _ in range(min(10, options.steps))]
    interval = int(imgcls.compose([]).debug.every)
    off, on = [], []
    print(f"{'ms':>8}{'a step, off':>14}{'on':>10}{'observing':>12}")
    for _ in range(options.repeats):
        off.append(trained(False, options, batches))
        on.append(trained(True, options, batches))
        row = (off[-1].unobserved, on[-1].unobserved, statistics.median(on[-1].observing))
        print(f"{'':8}{1e3 * row[0]:14.1f}{1e3 * row[1]:10.1f}{1e3 * row[2]:12.1f}", flush=True)
    step = statistics.median(one.unobserved for one in off)
    observing = statistics.median(extra for one in on for extra in one.observing) / interval / step
    others = statistics.median(b.unobserved / a.unobserved - 1 for a, b in zip(off, on, strict=True))
    processor = statistics.median(b.processor / a.processor - 1 for a, b in zip(off, on, strict=True))
    end = statistics.median(one.end for one in on) - statistics.median(one.end for one in off)
    print(f"observing one step in {interval}: {observing:.2%} of a step (at most {MOST:.0%} for all)")
    print(f"the steps that are not observed: {others:+.2%}; the look of the rules at the end: {end:.2f} s")
    print(f"the processor's time, one step in {EVERY} observed: {processor:+.2%}")
    result: dict[str, Any] = {
        "benchmark": "debugging",
        "model": options.model,
        "size": options.size,
        "batch": options.batch,
        "steps": options.steps,
        "repeats": options.repeats,
        "torch": torch.__version__,
        "milliseconds_a_step": round(1e3 * step, 2),
        "observing": round(observing, 5),
        "unobserved": round(others, 5),
        "cost": round(observing + others, 5),
        "end_seconds": round(end, 3),
        "processor_at_5": round(processor, 5),
        "within_limit": observing + others <= MOST,
    }
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
