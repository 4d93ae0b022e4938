"""What the batches of images and those of their features have in common: which images belong to a batch, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from imgcls.data.augment import Augment
from imgcls.data.batch import Batch, RawBatch
from imgcls.data.loader import EvaluationPlan, Loader, Plan, TrainingPlan
from imgcls.data.sources import Source, Split
from imgcls.errors import UserError
from imgcls.images.preprocessing import Size
from imgcls.system.machine import local_processes


class BatchedData(L.LightningDataModule):
    """Labels, order and loaders of the splits of a data set; a subclass says what it loads.

    Args:
        batch_size: images per optimiser step, over all devices and micro-batches.
        micro_batch_size: maximum number of images per forward pass of a device; None: its whole share of the batch.
        world_size: processes that share a batch, if no trainer is attached.
        order_seed: decides the order and the augmentation.
        sampler: `shuffle`, or `balanced`, which draws each class equally often.
    """

    root: Path | None = None
    """Folder of the data set."""
    augment: Augment
    """What happens to the images of the training batches."""
    image_size: Size
    """Side of the square input of the model, or its (height, width), px."""
    smallest_evaluation_batch = 1
    """Number of images, of a process, where `micro_batch_size` does not say."""

    def __init__(
        self, *, batch_size: int, micro_batch_size: int | None, world_size: int, order_seed: int, sampler: str
    ) -> None:
        super().__init__()
        # with more processes than images, some have none to evaluate
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.batch_size, self.micro_batch_size, self.world_size = batch_size, micro_batch_size, world_size
        self.order_seed, self.sampler = order_seed, sampler
        self.tested = "test"
        """The split that a trainer tests on."""

    @property
    def source(self) -> Source:
        """The splits, with the labels of their images."""
        raise NotImplementedError

    def _make_loader(self, name: str, plan: Plan, *, training: bool = False) -> Loader[RawBatch | Batch]:
        """The batches of the split `name` in the order of `plan`."""
        raise NotImplementedError

    def _count(self, name: str, *, evaluation: bool = True) -> int:
        """Number of images of the split `name`, without those that cannot be read."""
        return len(self._need(name))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Readable class names, by label."""
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    @property
    def multilabel(self) -> bool:
        """Whether an image can have several labels."""
        return self.source.train.multilabel

    def class_counts(self) -> Tensor:
        """Number of training images of each class, int64 (C,)."""
        return torch.from_numpy(self.source.train.class_counts(self.num_classes))

    def train_dataloader(self) -> Loader[RawBatch | Batch]:
        """Training batches, in another order per epoch."""
        return self._make_loader("train", self._training_plan(), training=True)

    def val_dataloader(self) -> Loader[RawBatch | Batch] | list[Any]:
        """Validation images in order; an empty list if there are none."""
        return self.evaluation_dataloader("val") if self.source.val is not None else []

    def test_dataloader(self) -> Loader[RawBatch | Batch]:
        """The images of the split `tested`, in order."""
        return self.evaluation_dataloader(self.tested)

    predict_dataloader = test_dataloader

    def evaluation_dataloader(self, split: str) -> Loader[RawBatch | Batch]:
        """The images of `split` (train, val, test) in order, each once, without augmentation."""
        rank, world_size = self._ranks()
        batch_size = self.micro_batch_size or max(self.smallest_evaluation_batch, self.batch_size // world_size)
        plan = EvaluationPlan(self._count(split), batch_size, rank=rank, world_size=world_size)
        return self._make_loader(split, plan)

    def in_order(self, split: str, batch_size: int, epoch: int | None = None) -> Loader[RawBatch | Batch]:
        """All images of `split` in order, for this process alone; augmented as in `epoch` if that is not None."""
        training = epoch is not None
        plan = EvaluationPlan(self._count(split, evaluation=not training), batch_size)
        loader = self._make_loader(split, plan, training=training)
        loader.epoch = epoch or 0
        return loader

    # ---- how a batch is split

    @property
    def accumulation(self) -> int:
        """Micro-batches of a device per optimiser step: Trainer(accumulate_grad_batches=…)."""
        _, world_size = self._ranks()
        share = -(-min(self.batch_size, len(self._need("train"))) // world_size)
        return -(-share // min(self.micro_batch_size or share, share))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return len(self._training_plan()) // self.accumulation

    @property
    def expected_micro_batch(self) -> float:
        """Mean number of images in a training micro-batch, by which a sum of losses is divided."""
        _, world_size = self._ranks()
        return min(self.batch_size, len(self._need("train"))) / (world_size * self.accumulation)

    def _need(self, name: str) -> Split:
        split = self.source.splits().get(name)
        if split is None:
            raise UserError(f"{type(self).__name__} at {self.root} has no {name} images.")
        return split

    def _training_plan(self) -> TrainingPlan:
        rank, world_size = self._ranks()
        return self._make_plan(
            self._need("train").strata,
            self.batch_size,
            seed=self.order_seed,
            rank=rank,
            world_size=world_size,
            accumulation=self.accumulation,
            sampler=self.sampler,
        )

    def _make_plan(self, labels: np.ndarray, batch_size: int, **options: Any) -> TrainingPlan:
        """The order of the training images; see TrainingPlan."""
        return TrainingPlan(labels, batch_size, **options)

    def _running(self) -> bool:
        trainer: Any = self.trainer
        return getattr(trainer, "datamodule", None) is self and trainer.state.status == "running"

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, self.world_size)

    def _processes_here(self) -> int:
        """Processes on this machine that open the same stores."""
        if self.trainer is not None:
            return max(1, self.trainer.world_size // self.trainer.num_nodes)
        return local_processes(self.world_size)
