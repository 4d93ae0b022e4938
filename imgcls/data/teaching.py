"""Joins the stored answers of a teacher to the labels of the training batches."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imgcls.data.batch import Batch, RawBatch
from imgcls.data.loader import Loader
from imgcls.data.mixing import soft
from imgcls.data.stores.features import FeatureStore
from imgcls.models.distillation import join


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher's logits for all training images, as they are or in the views that the epochs use in turn.

    Attributes:
        logits: (V, N, C), in the order of the split and of the class names.
        views: number of augmented views, V; 0: one of the images as they are, whatever the student sees.
        temperature: by which the logits are divided before the softmax.
        unlabelled: bool (N,), the images whose labels are not to be learnt.
        key: a hash of the teacher.
    """

    logits: FeatureStore
    views: int
    temperature: float
    unlabelled: Tensor
    key: str

    def teach(self, loader: Loader[RawBatch | Batch]) -> Loader[RawBatch | Batch]:
        """`loader` of training images with labels of `imgcls.models.distillation.join`, in the views of the teacher."""
        load, stream = loader.load, loader.stream

        def load_taught(positions: Tensor, draws: Tensor, epoch: int) -> RawBatch | Batch:
            assert load is not None
            return self._taught(load(positions, draws, self._view(epoch)), epoch)

        def stream_taught(
            batches: Sequence[tuple[Tensor, Tensor]], epoch: int
        ) -> Generator[RawBatch | Batch, None, None]:
            assert stream is not None
            batches_of_view = stream(batches, self._view(epoch))
            try:
                for batch in batches_of_view:
                    yield self._taught(batch, epoch)
            finally:
                batches_of_view.close()

        return Loader(
            loader.plan,
            load_taught if load is not None else None,
            finish=loader.finish,
            ahead=loader.ahead,
            stream=stream_taught if stream is not None else None,
        )

    def _view(self, epoch: int) -> int:
        return epoch % self.views if self.views else epoch

    def _taught(self, batch: RawBatch | Batch, epoch: int) -> RawBatch | Batch:
        logits = self.logits.gather(batch.index, self._view(epoch))
        answers = torch.softmax(logits / self.temperature, dim=1)
        labels = soft(batch.labels, answers.shape[1])
        labels[self.unlabelled[batch.index]] = 0
        return batch._replace(labels=join(labels, answers))
