"""An exported model in the place of the network that it came from, so that its answers are measured in the same way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imgcls.models.architecture import Architecture
from imgcls.models.network import Network
from imgcls.portable.model import PortableModel


class EngineNetwork(Network):
    """The engine of `model` as a network on the CPU: normalised (N, 3, H, W) images to (N, C) logits."""

    def __init__(self, model: PortableModel) -> None:
        super().__init__(nn.Identity(), nn.Identity(), Architecture.from_dict(model.description["architecture"]))
        self._model = model

    def forward(self, images: Tensor) -> Tensor:
        outputs = self._model.engine.outputs(images.contiguous().numpy())
        return torch.from_numpy(outputs[:, : len(self._model.class_names)].copy())
