"""Parts 1 and 5 of gpu.py: how fast a network trains."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_notebook import (
    Notebook,
    Scale,
    Values,
    autocast,
    epoch_rates,
    peak_memory,
    spread,
    trainer_overrides,
    wait_for,
)
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from imgcls.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from imgcls.models.backbones import create_network


def training(scale: Scale, notes: Notebook) -> None:
    """Part 1."""
    for model in scale.models:
        for mode in ("eager", "compiled") if scale.compiled else ("eager",):
            compiled = mode == "compiled"
            notes.measure(f"1 {model} {mode} plain loop", lambda m=model, c=compiled: plain_loop(scale, m, c))
            for name, augment in (("imgcls", "none"), ("imgcls, augmenting", "default")):
                if augment == "none" or (model, mode) == (scale.models[0], "eager"):
                    notes.measure(
                        f"1 {model} {mode} {name}",
                        lambda m=model, c=compiled, a=augment: through_imgcls(scale, notes, m, c, a),
                    )
    folder = notes.folder / "photographs"
    notes.measure("1 files usual", lambda: usual_way(scale, photographs(folder, scale)))
    notes.measure("1 files imgcls", lambda: files_through_imgcls(scale, notes, photographs(folder, scale)))


def through_imgcls(scale: Scale, notes: Notebook, model: str, compiled: bool, augment: str) -> Values:
    """All of imgcls: Lightning, metrics, gradient clipping, the rules, the run folder."""
    run = notes.run(
        *(
            "data=synthetic",
            f"data.count={scale.steps * scale.batch}",
            f"augment={augment}",
            f"debug.profile={'kernels' if scale.device == 'cuda' else 'false'}",
        ),
        *(f"model.name={model}", f"model.compile={str(compiled).lower()}", *trainer_overrides(scale)),
    )
    use = run.folder / "debug" / "profile" / "kernels" / "device.json"
    found = {"images_per_second": epoch_rates(run, scale), "peak_memory_gb": peak_memory()}
    return {**found, **(json.loads(use.read_text()) if use.is_file() else {})}


def plain_loop(scale: Scale, model: str, compiled: bool) -> Values:
    """A hand-written loop with the same network, optimiser, schedule, clipping and precision."""
    network = create_network(model, 10).to(scale.device, memory_format=torch.channels_last).train()
    run: Any = torch.compile(network) if compiled else network
    shape = (scale.batch, 3, scale.size, scale.size)
    batches = [
        (
            torch.randn(shape, device=scale.device).contiguous(memory_format=torch.channels_last),
            torch.randint(0, 10, (scale.batch,), device=scale.device),
        )
        for _ in range(4)
    ]
    return {"images_per_second": train_plainly(scale, network, run, lambda: batches_of(batches, scale.steps))}


def batches_of(batches: list[tuple[Tensor, Tensor]], steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    return (batches[step % len(batches)] for step in range(steps))


def train_plainly(scale: Scale, network: nn.Module, run: Any, epoch: Callable[[], Any]) -> Values:
    """Images per second of a plain loop over `epoch()`: a warm-up epoch, then `repeats` epochs."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, (1 + scale.repeats) * scale.steps)
    criterion, rates = nn.CrossEntropyLoss(label_smoothing=0.1), []
    for _ in range(1 + scale.repeats):
        images_seen = 0
        wait_for(scale.device)
        began = time.perf_counter()
        for images, labels in epoch():
            with autocast(scale.device):
                images = images.to(scale.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
                loss = criterion(run(images), labels.to(scale.device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            images_seen += len(images)
        wait_for(scale.device)
        rates.append(images_seen / (time.perf_counter() - began))
    return spread(rates[1:])


def photographs(folder: Path, scale: Scale) -> Path:
    """JPEGs of 500x375 in ten class folders, generated once."""
    distinct, times = scale.photographs
    root = folder / f"{distinct}x{times}"
    if root.is_dir():
        return root
    temporary = folder / "unfinished"
    shutil.rmtree(temporary, ignore_errors=True)

    def make(number: int) -> None:
        small = np.random.default_rng(number).integers(0, 256, (47, 63, 3), dtype=np.uint8)
        place = temporary / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(
            place / f"{number:05}-0.jpg", quality=90
        )
        for again in range(1, times):
            os.link(place / f"{number:05}-0.jpg", place / f"{number:05}-{again}.jpg")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(distinct)))
    temporary.rename(root)
    return root


def usual_way(scale: Scale, root: Path) -> Values:
    """torchvision's ImageFolder and transforms in a DataLoader with all cores, and a plain loop."""
    steps = [v2.RandomResizedCrop(scale.size, (0.35, 1.0)), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    cores = os.cpu_count() or 1
    loader: Any = DataLoader(
        datasets.ImageFolder(root, v2.Compose(steps)),
        scale.batch,
        shuffle=True,
        drop_last=True,
        num_workers=cores,
        pin_memory=scale.device == "cuda",
        persistent_workers=True,
    )
    network = create_network(scale.models[0], 10).to(scale.device, memory_format=torch.channels_last).train()
    return {"images_per_second": train_plainly(scale, network, network, lambda: loader), "workers": cores}


def files_through_imgcls(scale: Scale, notes: Notebook, root: Path) -> Values:
    """The same files and network; each file is decoded once, before the training."""
    run = notes.run(
        *("data=imagefolder", f"data.root={root}", "data.test_fraction=0.02", f"+data.cache={notes.folder / 'cache'}"),
        *(f"model.name={scale.models[0]}", "model.compile=false", *trainer_overrides(scale)),
    )
    return {"images_per_second": epoch_rates(run, scale)}


def processes(scale: Scale, notes: Notebook) -> None:
    """Part 5."""
    for count in (1, 2):
        notes.measure(f"5 {count} process{'es' if count > 1 else ''}", lambda c=count: in_processes(scale, notes, c))


def in_processes(scale: Scale, notes: Notebook, count: int) -> Values:
    if scale.device == "cuda" and torch.cuda.device_count() < 2:
        return {"skipped": "needs two GPUs"}
    batch = scale.batch * count
    words = [word for word in trainer_overrides(scale) if not word.startswith(("data.batch_size", "trainer.devices"))]
    run = notes.run(
        *("data=synthetic", f"data.count={scale.steps * batch}", f"data.batch_size={batch}", "augment=none"),
        *(f"trainer.devices={count}", f"model.name={scale.models[0]}", "model.compile=false", *words),
    )
    return {"images_per_second": epoch_rates(run, scale, count)}
