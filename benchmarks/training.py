"""Images per second in training: imgcls (Lightning, metrics, clipping) against a plain PyTorch loop, side by side.

    python benchmarks/training.py [--model resnet18] [--size 32] [--batch 64] [--batches 20] [--repeats 5] [--json FILE]

Both train the same network with the same optimiser on the same batches, which are already in memory. The repeats
alternate, so that a busy machine slows both; each figure is the median. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from imgcls.callbacks.timing import Timing
from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from imgcls.models.network import Network
from imgcls.models.optim import AdamW

Batches = list[tuple[Tensor, Tensor]]


class Clock(L.Callback):
    """The seconds of the last epoch's training batches."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        synchronise(pl_module.device)
        self.seconds = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        synchronise(pl_module.device)
        self.seconds = time.perf_counter() - self.seconds


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def with_imgcls(network: Network, batches: Batches, accelerator: str) -> float:
    """Seconds of an epoch with the Classifier and Lightning's Trainer, after a warm-up epoch."""
    clock = Clock()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator=accelerator,
        devices=1,
        gradient_clip_val=1.0,
        callbacks=[clock, Timing()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type, var-annotated]
    trainer.fit(Classifier(network, optim=AdamW(lr=1e-4), label_smoothing=0.1), loader)
    return clock.seconds


def with_plain_loop(network: Network, batches: Batches, accelerator: str) -> float:
    """Seconds of an epoch of a hand-written loop, after a warm-up epoch."""
    device = torch.device("cuda" if accelerator == "cuda" else "cpu")
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * len(batches))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    began = 0.0
    for _ in range(2):
        synchronise(device)
        began = time.perf_counter()
        for images, labels in batches:
            optimizer.zero_grad()
            loss = criterion(network(images.to(device)), labels.to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        synchronise(device)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    shape = (options.batch, 3, options.size, options.size)
    batches = [(torch.randn(shape), torch.randint(0, 10, (options.batch,))) for _ in range(options.batches)]
    images = options.batch * options.batches
    rates: dict[str, list[float]] = {"plain loop": [], "imgcls": []}
    for _ in range(options.repeats):
        for name, measure in (("plain loop", with_plain_loop), ("imgcls", with_imgcls)):
            torch.manual_seed(0)
            rates[name].append(images / measure(create_network(options.model, 10), batches, accelerator))

    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{'':12} {'images/s':>10} {'lowest':>10} {'highest':>10}")
    for name, values in rates.items():
        print(f"{name:12} {medians[name]:10.1f} {min(values):10.1f} {max(values):10.1f}")
    result: dict[str, Any] = {
        "benchmark": "training",
        "model": options.model,
        "size": options.size,
        "batch": options.batch,
        "accelerator": accelerator,
        "torch": torch.__version__,
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "ratio": round(medians["imgcls"] / medians["plain loop"], 4),
    }
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
