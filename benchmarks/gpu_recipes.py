"""Parts 2 to 4 of gpu.py: CIFAR-10 by its recipes, too little memory, inference."""

from __future__ import annotations

import time
from collections.abc import Callable
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
from race import ENTRANTS, run_published, summary

from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.models.network import Network
from imgcls.portable.exporter import export_onnx


def cifar10(scale: Scale, notes: Notebook, root: Path | None, airbench: Path | None) -> None:
    """Part 2."""
    scripts = {recipe: script for script, recipe in ENTRANTS.values()}
    for recipe, count in scale.seeds:
        if root is not None and airbench is not None:
            file = airbench / scripts[recipe]
            notes.measure(f"2 {file.name}", lambda f=file, r=root, c=count: summary(run_published(f, r, c)))
        for seed in range(count):
            notes.measure(f"2 {recipe} seed {seed}", lambda r=recipe, s=seed: recipe_run(scale, notes, root, r, s))


def recipe_run(scale: Scale, notes: Notebook, root: Path | None, recipe: str, seed: int) -> Values:
    overrides = [f"experiment={recipe}", f"seed={seed}", *scale.recipe]
    if root is None:
        count = 50_000 if not scale.recipe else 64
        overrides += ["data=synthetic", f"data.count={count}", "data.image_size=32"]
    else:
        overrides += [f"data.root={root}", f"+data.cache={notes.folder / 'cache'}"]
    run = notes.run(*overrides, f"trainer.accelerator={scale.device}", "trainer.devices=1")
    accuracy = run.metrics["test/accuracy"] if root is not None else None
    return {"accuracy": accuracy, "seconds": run.metrics["wall_seconds"], "epochs": run.metrics["epochs"]}


def memory(scale: Scale, notes: Notebook) -> None:
    """Part 3."""
    notes.measure("3 out of memory", lambda: out_of_memory(scale, notes))


def out_of_memory(scale: Scale, notes: Notebook) -> Values:
    if scale.device != "cuda":
        return {"skipped": "needs a GPU"}
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, scale.memory / total))
    try:
        run = notes.run(
            *("data=synthetic", f"data.count={scale.steps * scale.batch}", "model=resnet50", "model.compile=false"),
            *(word for word in trainer_overrides(scale) if not word.startswith("data.store")),
            "data.store=memory",
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    micro = run.status.get("micro_batch_size")
    rates = epoch_rates(run, scale)
    return {"batch": scale.batch, "micro_batch": micro, "peak_memory_gb": peak_memory(), "images_per_second": rates}


def inference(scale: Scale, notes: Notebook) -> None:
    """Part 4."""
    model = scale.middle
    notes.measure(f"4 {model} eager", lambda: network_rate(scale, model, compiled=False))
    if scale.compiled:
        notes.measure(f"4 {model} compiled", lambda: network_rate(scale, model, compiled=True))
    execution = "CUDA" if scale.device == "cuda" else "CPU"
    notes.measure(f"4 {model} ONNX Runtime", lambda: onnx_rate(scale, notes, model, execution))
    if scale.device == "cuda":
        notes.measure(f"4 {model} TensorRT", lambda: onnx_rate(scale, notes, model, "Tensorrt"))


def network_rate(scale: Scale, model: str, *, compiled: bool) -> Values:
    network: Any = create_network(model, 10).to(scale.device, memory_format=torch.channels_last).eval()
    if compiled:
        network.compile()
    images = torch.randn(scale.batch, 3, scale.size, scale.size, device=scale.device)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), autocast(scale.device):
        return {"images_per_second": repeated(scale, lambda: network(images))}


def repeated(scale: Scale, work: Callable[[], Any], images: int | None = None) -> Values:
    """Images per second of `steps` calls, each of `images`, measured `repeats` times after a warm-up."""
    rates = []
    for _ in range(1 + scale.repeats):
        wait_for(scale.device)
        began = time.perf_counter()
        for _ in range(scale.steps):
            work()
        wait_for(scale.device)
        rates.append(scale.steps * (images or scale.batch) / (time.perf_counter() - began))
    return spread(rates[1:])


def onnx_rate(scale: Scale, notes: Notebook, model: str, execution: str) -> Values:
    try:
        import onnxruntime
    except ImportError:
        return {"skipped": "onnxruntime is not installed"}
    provider = f"{execution}ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        return {"skipped": f"this onnxruntime has no {execution}"}
    network: Network = create_network(model, 10).eval()
    file = notes.folder / "model.onnx"
    if not export_onnx(network, Preprocessing(scale.size, scale.size, "bicubic"), file):
        return {"skipped": "onnx is not installed"}
    onnxruntime.set_default_logger_severity(3)
    options = {"trt_fp16_enable": True} if execution == "Tensorrt" else {}
    session = onnxruntime.InferenceSession(str(file), providers=[(provider, options)])
    if provider not in session.get_providers():
        return {"skipped": f"onnxruntime found no {execution} libraries"}
    images = torch.randn(scale.batch, 3, scale.size, scale.size, device=scale.device)
    binding = session.io_binding()
    binding.bind_input("images", scale.device, 0, np.float32, tuple(images.shape), images.data_ptr())
    binding.bind_output("scores", scale.device)
    return {"images_per_second": repeated(scale, lambda: session.run_with_iobinding(binding))}
