"""The network that is trained, exported and served: a backbone and a head."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import imgcls.models.cifarnet  # noqa: F401 - registers its networks with timm
from imgcls.errors import UserError
from imgcls.models.architecture import Architecture
from imgcls.models.memory import Memory
from imgcls.models.views import mean_features
from imgcls.system.allocation import keep_freed_memory


class Network(nn.Module):
    """Images to logits: `head(backbone(images))`.

    The first one sets how this process keeps memory, see `imgcls.system.allocation`.

    Attributes:
        backbone: a timm model without its classifier.
        head: maps features to logits.
        frozen: whether the backbone is frozen: no gradients are computed for it, and it is in evaluation mode.
        frozen_norms: whether the backbone's batch norms keep their statistics in training and normalise with them.
        trained_head: whether the head's weights come from another run.
        dimensions: number of dimensions of each parameter by name, valid while processes have flat shards of it.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        keep_freed_memory()
        self.backbone, self.head, self._architecture = backbone, head, architecture
        self.frozen = self.frozen_norms = self.trained_head = False
        self.dimensions = {name: parameter.ndim for name, parameter in self.named_parameters()}

    @property
    def architecture(self) -> Architecture:
        """The description that `network_from_architecture` rebuilds the network from."""
        if isinstance(self.head, Memory):  # whose size depends on the images that it keeps
            return replace(self._architecture, head=self.head.head)
        return self._architecture

    @property
    def num_features(self) -> int:
        """Number of features, F."""
        return width_of(self.backbone)

    @property
    def has_depthwise_convolutions(self) -> bool:
        """Whether it is like MobileNet and EfficientNet: depthwise convolutions, each followed by a batch norm.

        They are twice as fast with the channels innermost; those of ConvNeXt, with layer norms, are not.
        """
        modules = self.backbone.modules()
        depthwise = any(isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels for module in modules)
        return depthwise and self.has_batch_norms

    @property
    def has_batch_norms(self) -> bool:
        """Whether it is a convolutional network like ResNet and EfficientNet, and unlike ConvNeXt and transformers."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.backbone.modules())

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images to (N, F) features."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone(images)

    def mean_features(self, images: Tensor) -> Tensor:
        """(N, F) features of (N, 3, H, W) normalised images, the mean over the `architecture.views` of each image.

        The logits that a linear head computes of them are the mean of those of the views. With views=where_unsure they
        depend on the head: images of which it is sure after one view have only that.
        """
        return mean_features(images, self.architecture.views, self.features, self.head)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images, or their (N, F) features, to (N, C) logits.

        In evaluation mode the features are the mean over the `architecture.views` of each image.
        """
        if images.ndim == 2:
            return self.head(images)
        return self.head(self.features(images) if self.training else self.mean_features(images))

    @property
    def changes_with_epochs(self) -> bool:
        """Whether parts of the backbone stop training after some epochs."""
        return hasattr(self.backbone, "begin_epoch")

    def begin_epoch(self, epoch: int) -> None:
        """Pass the epoch, counted from 0, to a backbone that depends on it."""
        if self.changes_with_epochs:
            self.backbone.begin_epoch(epoch)  # type: ignore[operator]

    def freeze(self, frozen: bool) -> None:
        """Freeze or unfreeze the backbone."""
        self.frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> Network:
        """Switch between training and evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.frozen_norms:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def width_of(backbone: nn.Module) -> int:
    """Number of features of the backbone without a classifier."""
    width = getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise UserError("This timm model is not a classifier: it does not define its number of features.")
    return width
