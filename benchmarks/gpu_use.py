"""Parts 6 to 8 of gpu.py: the features of a frozen backbone, a search on them, the server."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from time import perf_counter as clock

import serving
import sweeps
import torch
from gpu_notebook import Notebook, Scale, Values, spread, wait_for
from gpu_recipes import repeated

from imgcls import portable
from imgcls.data.synthetic import Synthetic
from imgcls.models.backbones import create_network
from imgcls.training.frozen_backbone import BATCH, compute_features

CLIENTS = 64


def features(scale: Scale, notes: Notebook) -> None:
    """Part 6."""
    notes.measure(f"6 {scale.middle} bare forward pass", lambda: bare_rate(scale))
    notes.measure(f"6 {scale.middle} features", lambda: features_rate(scale, notes))


def bare_rate(scale: Scale) -> Values:
    """The frozen backbone alone, in the batches and the precision in which its features are computed."""
    network = create_network(scale.middle, 10).to(scale.device).eval()
    images = torch.randn(BATCH, 3, scale.size, scale.size, device=scale.device)
    with torch.inference_mode():
        return {"images_per_second": repeated(scale, lambda: network.features(images), BATCH)}


def features_rate(scale: Scale, notes: Notebook) -> Values:
    """From decoded pixels to stored features; a first network, which is not counted, finds the pixels not decoded."""
    cache = notes.folder / "cache"
    data = Synthetic(count=scale.features, side=32, image_size=scale.size, resize=scale.size, cache=cache)
    data.setup(None)  # type: ignore[arg-type]
    rates = []
    for seed in range(1 + scale.repeats):
        torch.manual_seed(seed)
        network = create_network(scale.middle, 10)
        wait_for(scale.device)
        began = clock()
        compute_features(data, network, device=torch.device(scale.device), splits=("train",))
        rates.append(scale.features / (clock() - began))
        shutil.rmtree(cache / "features", ignore_errors=True)
    return {"images_per_second": spread(rates[1:])}


def search(scale: Scale, notes: Notebook) -> None:
    """Part 7."""
    train, val, side = scale.search
    setting = argparse.Namespace(photos=None, weights=None, train=train, val=val, side=side, workers=1)
    place = (notes.folder / "search").resolve()
    place.mkdir(parents=True, exist_ok=True)

    def ours() -> Values:
        seconds, rows = sweeps.shared_search(setting, place)
        return {"total_seconds": seconds, "epochs": sum(int(row["trainer.max_epochs"]) for row in rows)}

    def usual() -> Values:
        row = {"optim.lr": "0.001", "trainer.max_epochs": "1"}
        began = clock()
        sweeps.usual_trial(sweeps.trial_job(setting, place, row))
        epochs = notes.values["7 search imgcls"]["epochs"]
        return {"total_seconds": epochs * (clock() - began), "epochs": epochs, "measured_epochs": 1}

    notes.measure("7 search imgcls", ours)
    if "epochs" in notes.values.get("7 search imgcls", {}):
        if not (place / "pictures").is_dir():
            sweeps.write_search(setting, place)
        notes.measure("7 search usual loop", usual)


def server(scale: Scale, notes: Notebook) -> None:
    """Part 8."""
    notes.measure(f"8 {scale.middle} bare engine", lambda: engine_rate(scale, notes))
    notes.measure(f"8 {scale.middle} server, {CLIENTS} clients", lambda: server_rate(scale, notes))


def model_folder(scale: Scale, notes: Notebook) -> Path:
    folder = notes.folder / "model"
    if not folder.is_dir():
        serving.write_model(scale.middle, scale.size, folder, onnx=False)
    return folder


def engine_rate(scale: Scale, notes: Notebook) -> Values:
    model = portable.load(model_folder(scale, notes), "torch", scale.device)
    count = scale.steps * CLIENTS
    rates = [serving.images_per_second(model.engine.outputs, CLIENTS, scale.size, count) for _ in range(scale.repeats)]
    return {"images_per_second": spread(rates)}


def server_rate(scale: Scale, notes: Notebook) -> Values:
    pictures = notes.folder / "requests"
    pictures.mkdir(exist_ok=True)
    for number, content in enumerate(serving.jpegs(None, 32)):
        (pictures / f"{number:03}.jpg").write_bytes(content)
    with serving.server(model_folder(scale, notes), "engine=torch", f"device={scale.device}") as port:
        found = [
            serving.load_from_outside(port, CLIENTS, scale.requests, pictures)["throughput"]
            for _ in range(1 + scale.repeats)
        ]
    return {"images_per_second": spread(found[1:])}
