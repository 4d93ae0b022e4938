"""Small trainings, sick and healthy, and their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from imgcls.callbacks.history import History
from imgcls.debug.recorder import Recorder
from imgcls.debug.rules import Rule
from imgcls.models.architecture import Architecture
from imgcls.models.classifier import Classifier
from imgcls.models.network import Network
from imgcls.models.optim import SGD

CLASSES = 4
WIDTH = 16


def pictures(count: int, *, random_labels: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with a bright quarter that depends on the class, (N, 3, 8, 8), and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    images = 0.3 * torch.randn(count, 3, 8, 8, generator=generator)
    for quarter in range(CLASSES):
        top, left = 4 * (quarter // 2), 4 * (quarter % 2)
        images[labels == quarter, :, top : top + 4, left : left + 4] += 1.0
    images -= images.mean()
    if random_labels:
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return images, labels


def indistinct(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of classes 0, 1 and 2; a fifth of class 0 is labelled as class 3."""
    images, labels = pictures(count, seed=seed)
    images, labels = images[labels < 3], labels[labels < 3]
    first = (labels == 0).nonzero().flatten()
    labels[first[::5]] = 3
    return images, labels


def healthy_backbone() -> nn.Module:
    """Convolutions, batch norms, ReLUs."""
    layers: list[nn.Module] = []
    for channels in (3, WIDTH):
        layers += [nn.Conv2d(channels, WIDTH, 3, stride=2, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * WIDTH, WIDTH), nn.ReLU())


def deep_backbone(activation: type[nn.Module], depth: int = 30) -> nn.Module:
    """Linear layers, each followed by `activation`, and no norms."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(3 * 8 * 8, WIDTH), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(WIDTH, WIDTH), activation()]
    return nn.Sequential(*layers)


def train(
    folder: Path,
    backbone: nn.Module,
    *,
    lr: float = 0.05,
    epochs: int = 6,
    data: tuple[Tensor, Tensor] | None = None,
    val: tuple[Tensor, Tensor] | None = None,
    every: int = 1,
    batch_size: int = 32,
    rules: dict[str, Rule] | None = None,
    stop_on: tuple[str, ...] = (),
    warn: bool = True,
    class_counts: tuple[int, ...] = (),
    freeze: str = "none",
    callbacks: tuple[L.Callback, ...] = (),
    last: tuple[L.Callback, ...] = (),
    **options: Any,
) -> Recorder:
    """Train and return the recorder that watched."""
    torch.manual_seed(0)
    network = Network(backbone, nn.Linear(WIDTH, CLASSES), Architecture("test", CLASSES))
    classifier = Classifier(
        network, optim=SGD(lr=lr, weight_decay=0.0, schedule="constant", warmup_epochs=0), freeze=freeze
    )
    recorder = Recorder(folder, every=every, rules=rules, warn=warn, stop_on=stop_on, class_counts=class_counts)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    quiet |= {"accelerator": "cpu", "devices": 1}
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks, History(folder / "metrics.csv"), recorder, *last],
        **{**quiet, **options},
    )
    loaders = [
        DataLoader(TensorDataset(*part), batch_size) for part in (data or pictures(160), val or pictures(64, seed=1))
    ]
    trainer.fit(classifier, *loaders)
    return recorder
