"""Images per second of processor time: `imgcls.fit` with its defaults against the best plain PyTorch loop, on a CPU.

    python benchmarks/training.py [--models resnet18 vit_tiny_patch16_224 …] [--sizes 96 224] [--batch 64] [--batches 6]
                                  [--epochs 3] [--repeats 2] [--json FILE]

imgcls augments, clips, observes the steps, applies the rules, and measures layout and precision itself. The plain loop
has its batches normalised in memory, and is run in both layouts, in float32 and, where the processor computes in it, in
bfloat16; the fastest counts. Each is measured in a process of its own, since imgcls sets how a process keeps memory.
The repeats alternate. Prints a table and JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import lightning as L
import timm
import torch
from results import command_line
from torch import nn

import imgcls
from imgcls.training import arithmetic
from imgcls.training.arithmetic import BFLOAT16, FLOAT32, Arithmetic, computes_in_bfloat16

MODELS = ("resnet18", "resnet50", "tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224")
Result = TypeVar("Result")


class Clock(L.Callback):
    """Seconds of the processor, of all threads, from the start of an epoch to the end of its last training batch.

    The first epoch, in which the rules observe each of the first steps, is left out, as it is in the plain loop.
    """

    seconds = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self._last = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now = time.process_time()
        type(self).seconds += now - self._last if trainer.current_epoch > 0 else 0.0
        self._last = now


def in_new_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """What `function` returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def with_plain_loop(model: str, size: int, batch: int, count: int, epochs: int, choice: Arithmetic) -> float:
    """Images per second of a hand-written loop over `count` batches."""
    torch.manual_seed(0)
    batches = [(torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))) for _ in range(count)]
    network = timm.create_model(
        model, num_classes=10, **({"img_size": size} if model.startswith("vit") else {})
    ).train()
    if choice.channels_last:
        network.to(memory_format=torch.channels_last)
        batches = [(images.contiguous(memory_format=torch.channels_last), labels) for images, labels in batches]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    began, images_seen = 0.0, 0
    for epoch in range(epochs):
        if epoch == 1:
            began, images_seen = time.process_time(), 0
        for images, labels in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=choice.precision == BFLOAT16):
                loss = criterion(network(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            images_seen += len(labels)
    return images_seen / (time.process_time() - began)


def with_imgcls(model: str, size: int, batch: int, count: int, epochs: int) -> tuple[float, str]:
    """Images per second of `imgcls.fit` in its `count` training batches, and what it computed in."""
    import training  # this file, as Hydra imports it for the callback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    arithmetic.MAX_SHARE = arithmetic.MAX_SECONDS = float("inf")  # these trainings are too short otherwise
    training.Clock.seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"model.name={model}", "data=synthetic", f"data.count={batch * count}", f"data.image_size={size}"]
        overrides += [f"data.batch_size={batch}", f"trainer.max_epochs={epochs}", "trainer.accelerator=cpu"]
        overrides += ["report=false", "export.onnx=false", "quiet=true", f"run_dir={folder}/run", "data.val_fraction=0"]
        run = imgcls.fit(imgcls.compose([*overrides, "+callbacks.clock._target_=training.Clock"]))
        found = json.loads((run.folder / "arithmetic.json").read_text())
        chosen = Arithmetic(found["channels_last"], found["precision"])
        return batch * count * (epochs - 1) / training.Clock.seconds, str(chosen)


def compare(model: str, size: int, options: argparse.Namespace) -> dict[str, object]:
    """The rates of one network at one size."""
    work = (model, size, options.batch, options.batches, options.epochs)
    precisions = (FLOAT32, BFLOAT16) if computes_in_bfloat16() else (FLOAT32,)
    choices = [Arithmetic(last, precision) for precision in precisions for last in (False, True)]
    rates: dict[str, list[float]] = {f"plain loop, {choice}": [] for choice in choices}
    rates["imgcls"], chosen = [], ""
    for _ in range(options.repeats):
        for choice in choices:
            rates[f"plain loop, {choice}"].append(in_new_process(with_plain_loop, *work, choice))
        rate, chosen = in_new_process(with_imgcls, *work)
        rates["imgcls"].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max((name for name in medians if name != "imgcls"), key=lambda name: medians[name])
    for name, rate in medians.items():
        marks = f" ({chosen})" * (name == "imgcls") + " <- best" * (name == best)
        print(f"{model:24} {size:4} px  {name + marks:50} {rate:8.1f} images/s")
    return {
        "benchmark": "training",
        "model": model,
        "size": size,
        "batch": options.batch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "images_per_second": {name: round(rate, 1) for name, rate in medians.items()},
        "chosen": chosen,
        "ratio": round(medians["imgcls"] / medians[best], 3),
    }


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[96, 224])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["IMGCLS_CACHE"] = cache  # what another network or an earlier version has measured does not count
        results = [compare(model, size, options) for size in options.sizes for model in options.models]
    for result in results:
        print(json.dumps(result))
    if options.json:
        options.json.write_text("".join(json.dumps(result) + "\n" for result in results))


if __name__ == "__main__":
    main()
