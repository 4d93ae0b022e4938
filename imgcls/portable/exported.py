"""The network as it is exported: what `model.onnx` holds, and what torch computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imgcls.models.network import Network
from imgcls.models.views import add_views, unsureness
from imgcls.portable.novelty import Novelty


class Exported(nn.Module):
    """A network whose logits are divided by a temperature, and which also returns the novelty where it has one.

    What is fitted is in buffers, so that the graph is the same for all models of an architecture.
    """

    temperature: Tensor

    def __init__(self, network: Network, temperature: float = 1.0, novelty: Novelty | None = None) -> None:
        super().__init__()
        self.network, self.novelty = network, novelty
        fitted = {"temperature": torch.tensor(temperature)}
        if novelty is not None:
            means = torch.from_numpy(novelty.means)
            centre = means.mean(dim=0)
            fitted |= {"centre": centre, "means": means - centre}
            fitted |= {"scale": torch.tensor(novelty.scale / 2), "offset": torch.tensor(novelty.offset)}
        for name, value in fitted.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(N, 3, H, W) normalised images to (N, C) logits, and to (N,) novelties."""
        return self.of_features(self.network.mean_features(images))

    def of_features(self, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(N, F) features, the mean over the views, to the outputs of `forward`."""
        fitted = {name: value.to(features.device) for name, value in self.named_buffers(recurse=False)}
        logits = self.network.head(features).float() / fitted["temperature"]
        if self.novelty is None:
            return logits
        directions = nn.functional.normalize(features.float(), dim=1)
        # 1 - cosine as half of the squared distance, from the centre of all means: 1 - x would round small angles away.
        apart, means = directions - fitted["centre"], fitted["means"]
        squares = (apart**2).sum(dim=1, keepdim=True) + (means**2).sum(dim=1) - 2 * apart @ means.T
        return logits, fitted["scale"] * squares.amin(dim=1) + fitted["offset"]


class MeanFeatures(nn.Module):
    """The features of a network that its head sees in evaluation: the part of the graph that no new class changes."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images to (N, F) features, the mean over the views."""
        return self.network.mean_features(images)


class WithUnsureImages(nn.Module):
    """A network with views=where_unsure without its choice of images, which a graph of fixed shapes cannot make.

    `imgcls.portable.views_onnx` adds it to the exported graph.
    """

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.exported = exported

    def forward(self, images: Tensor, rows: Tensor, again: Tensor) -> tuple[Tensor, ...]:
        """The outputs of `Exported`, and how unsure each image is, (N,).

        Args:
            images: all, (N, 3, H, W), normalised.
            rows: of those of which the network is unsure, int64 (n,).
            again: these images, (n, 3, H, W).
        """
        network = self.exported.network
        first = network.features(images).float()
        unsure = unsureness(network.head(first))
        outputs = self.exported.of_features(add_views(first, unsure, rows, again, network.features))
        return *(outputs if isinstance(outputs, tuple) else (outputs,)), unsure
