"""The features of a frozen backbone in place of images, to train the head alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from imgcls.data.augment import Augment
from imgcls.data.batch import Batch, RawBatch
from imgcls.data.batched import BatchedData
from imgcls.data.batches import scaled_weights
from imgcls.data.loader import Loader, Plan
from imgcls.data.module import ImageDataModule
from imgcls.data.sources import Source
from imgcls.data.stores.features import FeatureStore


class FeatureDataModule(BatchedData):
    """Batches of (N, F) features, split and ordered as by `images`.

    Args:
        images: the data module of the images, set up.
        features: the features of each split.
        whole: make all training images one batch.
        augmented: the features of `train` are those of augmented images.
    """

    smallest_evaluation_batch = 1024  # features; a head takes as long for many as for few

    def __init__(
        self,
        images: ImageDataModule,
        features: Mapping[str, FeatureStore],
        *,
        whole: bool = False,
        augmented: bool = False,
    ) -> None:
        super().__init__(
            batch_size=max(images.batch_size, len(features["train"])) if whole else images.batch_size,
            micro_batch_size=images.micro_batch_size,
            world_size=images.world_size,
            order_seed=images.order_seed,
            sampler=images.sampler,
        )
        self.images, self.features, self.augmented = images, features, augmented
        self.image_size, self.augment = images.image_size, Augment()  # features are not augmented again

    @property
    def source(self) -> Source:
        """That of the images."""
        return self.images.source

    def _make_loader(self, name: str, plan: Plan, *, training: bool = False) -> Loader[RawBatch | Batch]:
        features, labels = self.features[name], torch.from_numpy(self._need(name).labels)
        weights = scaled_weights(self._need(name))

        def load(positions: Tensor, draws: Tensor, epoch: int) -> RawBatch | Batch:
            return Batch(features.gather(positions, epoch), labels[positions], positions, weights(positions))

        return Loader(plan, load)


def evaluation_features(data: BatchedData) -> dict[str, FeatureStore]:
    """The features in `data` of images as evaluation sees them, by split; none of batches of images."""
    if not isinstance(data, FeatureDataModule):
        return {}
    return {split: store for split, store in data.features.items() if split != "train" or not data.augmented}
