"""What watching costs: the time of a training step with `debug=default` against `debug=off`, side by side.

    python benchmarks/debugging.py [--model resnet18] [--size 64] [--batch 32] [--steps 100] [--repeats 5] [--json FILE]

Both train the same network on the same batches, which are in memory already, with the callbacks that a run has; what is
observed is read and the rules look at it at the end of the epoch, inside the measured time. The repeats take turns, so
that a busy machine slows both; the processor's time of the same steps, which other programs hardly change, is told
beside it. An epoch of `--steps` steps holds two observations of the default interval; the first
steps of a run, which are all observed, fall into the epoch that warms up. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate

import imgcls
from imgcls.history import History
from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from imgcls.models.optim import AdamW
from imgcls.timing import Timing

MOST = 0.03  # of a step: what watching may cost


class Clock(L.Callback):
    """The seconds of the last epoch, with what the other callbacks do at its end."""

    def __init__(self) -> None:
        self.began = self.seconds = 0.0
        self.processor_began = self.processor_seconds = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began, self.processor_began = time.perf_counter(), time.process_time()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.began
        self.processor_seconds = time.process_time() - self.processor_began


def seconds_a_step(watched: bool, options: argparse.Namespace, batches: list[Any]) -> tuple[float, float]:
    """Of the second epoch of a training: by the clock, and of the processor."""
    torch.manual_seed(0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        callbacks: list[L.Callback] = [clock, Timing(), History(folder / "metrics.csv")]
        if watched:
            callbacks += instantiate(imgcls.compose([]).debug, folder=folder / "debug", _convert_="all")
        trainer = L.Trainer(
            max_epochs=2,
            accelerator="cuda" if torch.cuda.is_available() else "cpu",
            devices=1,
            gradient_clip_val=1.0,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = torch.utils.data.DataLoader(batches * (options.steps // len(batches)), batch_size=None)
        trainer.fit(Classifier(create_network(options.model, 10), optim=AdamW(lr=1e-4)), loader)
    return clock.seconds / len(loader), clock.processor_seconds / len(loader)


def costs(values: dict[str, list[float]]) -> list[float]:
    """Of each repeat, what watching adds."""
    return [watched / alone - 1 for watched, alone in zip(values["debug=default"], values["debug=off"], strict=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")

    shape = (options.batch, 3, options.size, options.size)
    batches = [(torch.randn(shape), torch.randint(0, 10, (options.batch,))) for _ in range(min(10, options.steps))]
    measured: dict[str, list[tuple[float, float]]] = {"debug=off": [], "debug=default": []}
    for turn in range(options.repeats):
        for name in sorted(measured, reverse=turn % 2 == 0):
            measured[name].append(seconds_a_step(name == "debug=default", options, batches))
            print(f"{name:14} {1e3 * measured[name][-1][0]:10.2f} ms/step", flush=True)

    seconds, processor = ({name: [one[at] for one in measured[name]] for name in measured} for at in (0, 1))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{'':14} {'ms/step':>10} {'lowest':>10} {'highest':>10}")
    for name, values in seconds.items():
        print(f"{name:14} {1e3 * medians[name]:10.2f} {1e3 * min(values):10.2f} {1e3 * max(values):10.2f}")
    ratios, processor_ratios = costs(seconds), costs(processor)
    cost, processor_cost = statistics.median(ratios), statistics.median(processor_ratios)
    print(f"watching costs {cost:.2%} of a step (from {min(ratios):.2%} to {max(ratios):.2%}; at most {MOST:.0%})")
    print(f"of the processor's time {processor_cost:.2%} ({min(processor_ratios):.2%} to {max(processor_ratios):.2%})")
    result: dict[str, Any] = {
        "benchmark": "debugging",
        "model": options.model,
        "size": options.size,
        "batch": options.batch,
        "steps": options.steps,
        "torch": torch.__version__,
        "milliseconds_a_step": {name: round(1e3 * value, 3) for name, value in medians.items()},
        "cost": round(cost, 5),
        "costs": [round(ratio, 5) for ratio in ratios],
        "processor_cost": round(processor_cost, 5),
        "within_limit": cost <= MOST,
    }
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
