"""The network that is trained, exported and served: a backbone and a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import imgcls.models.cifarnet  # noqa: F401 - makes its networks known to timm
from imgcls.errors import UserError
from imgcls.models.architecture import Architecture
from imgcls.models.views import views


class Network(nn.Module):
    """Pictures to scores: `head(backbone(images))`.

    Attributes:
        backbone: a timm model without its classifier.
        head: from features to scores.
        frozen: the backbone is not trained: no gradients are computed for it, its batch norms are in eval mode.
        architecture: what `network_from_architecture` rebuilds the network from.
        dimensions: of each parameter by name, also while each process has only a flat share of it.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        self.backbone, self.head, self.architecture = backbone, head, architecture
        self.frozen = False
        self.dimensions = {name: parameter.ndim for name, parameter in self.named_parameters()}

    @property
    def num_features(self) -> int:
        """F."""
        return width_of(self.backbone)

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pictures to (N, F) features."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.backbone(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pictures, or the (N, F) features of such, to (N, C) scores before the softmax.

        In evaluation mode the scores are the mean over `architecture.views` of each picture.
        """
        scores: Tensor
        kind = self.architecture.views
        if images.ndim == 2 or self.training or kind == "one":
            scores = self.head(images if images.ndim == 2 else self.features(images))
        else:
            weighted = [weight * self.head(self.features(view)).float() for weight, view in views(images, kind)]
            scores = torch.stack(weighted).sum(dim=0)
        return scores

    @property
    def changes_with_epochs(self) -> bool:
        """Whether parts of the backbone stop training after some epochs."""
        return hasattr(self.backbone, "begin_epoch")

    def begin_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0 on, to a backbone that wants to know."""
        if self.changes_with_epochs:
            self.backbone.begin_epoch(epoch)  # type: ignore[operator]

    def freeze(self, frozen: bool) -> None:
        """Freeze the backbone, or let it train again."""
        self.frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> Network:
        """Training or evaluation mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


def width_of(backbone: nn.Module) -> int:
    """The number of features that the backbone gives without a classifier."""
    width = getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise UserError("This timm model is no classifier: it does not say how many features it has.")
    return width
