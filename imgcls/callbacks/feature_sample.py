"""Keeps the features of test images, from which the report draws its map of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from imgcls.system.files import atomic_path

MAX_IMAGES = 1000
COMPONENTS = 50


class FeatureSample(L.Callback):
    """Writes `test_features.npz` into `folder` during the test: the principal components of up to 1,000 images.

    - `files`: the names of the images, evenly spread over the test images of the first process.
    - `components`: float32 (N, up to 50), the features after a principal component analysis, widest first.
    - `share`: float32 (up to 50,), the share of the variance in each component.

    The features are caught where the head takes them; only a compiled network, into which no hook reaches, computes
    them again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._every = 0  # 0: not collecting
        self._latest: Tensor | None = None
        self._rows: list[Tensor] = []
        self._index: list[Tensor] = []
        self._hook: Any = None

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        test = getattr(getattr(data, "source", None), "test", None)
        if not pl_module.logs_test or not trainer.is_global_zero or not test:
            return
        self._every = -(-len(test) // MAX_IMAGES)
        self._rows, self._index, self._latest = [], [], None
        if pl_module.network._compiled_call_impl is None:
            self._hook = pl_module.network.head.register_forward_pre_hook(self._catch)

    def _catch(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        if self._latest is None:  # of several views the first, which is the image as it is
            self._latest = inputs[0]

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        if not self._every or len(batch) < 3:
            return
        chosen = batch[2] % self._every == 0
        features = self._latest[chosen] if self._latest is not None else batch[0][chosen].to(pl_module.dtype)
        if features.ndim > 2:
            with torch.no_grad():
                features = pl_module.network.features(features)
        self._rows.append(features.detach().float().cpu())
        self._index.append(batch[2][chosen].cpu())
        self._latest = None

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._hook is not None:
            self._hook.remove()
        every, self._every, self._hook = self._every, 0, None
        features = torch.cat(self._rows) if every and self._rows else torch.empty(0, 1)
        self._rows = []
        if len(features) < 3 or not features.isfinite().all():
            return
        components, share = principal_components(features)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        files = np.array([data.source.test.names[index] for index in torch.cat(self._index).tolist()])
        with atomic_path(self.folder / "test_features.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, files=files, components=components.numpy(), share=share.numpy())


def principal_components(features: Tensor, count: int = COMPONENTS) -> tuple[Tensor, Tensor]:
    """The first `count` principal components of float32 (N, F), widest first, and the share of the variance in each."""
    centred = features - features.mean(dim=0)
    total = centred.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the randomised method (Halko et al. 2011)
        _, widths, directions = torch.pca_lowrank(centred, q=min(count, *centred.shape), center=False, niter=4)
    return centred @ directions, widths.square() / total
