"""The one LightningModule: a network, its loss, its optimiser, and numbers that are means over pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from imgcls.models.backbones import Network
from imgcls.models.losses import picture_losses
from imgcls.models.optim import AdamW, Optim

CALIBRATION_BINS = 15


@dataclass
class Outputs:
    """What the model said of every test picture, in the order of the split, on the CPU."""

    index: Tensor
    """int64 (N,), positions in the split."""
    logits: Tensor
    """float32 (N, C)."""
    labels: Tensor
    """int64 (N,)."""
    loss: Tensor
    """float32 (N,), cross entropy without smoothing."""


class Classifier(L.LightningModule):
    """Trains and measures a network; takes batches `(images, labels)` or `(images, labels, index)`.

    The training loss is the mean over the pictures of an optimiser step, however it is cut into micro-batches.
    Validation and test loss are the plain cross entropy, without smoothing, weights or focusing, so that they compare
    between runs. Metrics stay on the device until the epoch ends, and are exact over several processes.

    Args:
        network: what is trained.
        optim: optimiser and schedule.
        class_names: in the order of the scores.
        label_smoothing, class_weights, focal_gamma: see `imgcls.models.losses`.
        freeze: 'none'; 'backbone' trains the head alone; 'head_first' does so for `unfreeze_epoch` epochs.
        unfreeze_epoch: the first epoch in which 'head_first' trains the backbone too.
        channels_last: lay pictures and weights out with the channels innermost.
        compile: run the network through torch.compile.
        seed: of dropout and stochastic depth, which are seeded anew for each batch, so that a resumed run needs no
            stored state.
    """

    def __init__(
        self,
        network: Network,
        *,
        optim: Optim | None = None,
        class_names: Sequence[str] | None = None,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        focal_gamma: float = 0.0,
        freeze: str = "none",
        unfreeze_epoch: int = 1,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 - torch's own word
        seed: int = 0,
    ) -> None:
        super().__init__()
        count = int(network.architecture["num_classes"])
        self.network, self.optim = network, optim or AdamW()
        self.class_names = tuple(class_names or map(str, range(count)))
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.freeze_mode, self.unfreeze_epoch = freeze, unfreeze_epoch
        self.channels_last, self.seed = channels_last, seed
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        if freeze == "backbone":
            self.network.backbone.requires_grad_(False)
        if compile:
            self.network.compile()
        self._freeze_for(0)
        self._random = any(_draws_at_random(module) for module in network.modules())
        self._train_totals: Tensor | None = None
        self.val_metrics = evaluation_metrics(count, "val/")
        self.test_metrics = evaluation_metrics(count, "test/")
        self.confusion = MulticlassConfusionMatrix(count)
        self.test_outputs = Outputs(torch.empty(0, dtype=torch.int64), *(torch.empty(0) for _ in range(3)))
        self.test_confusion = torch.empty(0, 0)
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    # ---- what Lightning calls

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pictures to (N, C) scores."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        scores: Tensor = self.network(images)
        return scores

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, and its schedule by the step."""
        steps = self.trainer.estimated_stepping_batches
        epochs = self.trainer.max_epochs or 0
        optimizer, schedule = self.optim.build(self.network, steps, steps / epochs if epochs > 0 else steps)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        self._freeze_for(self.current_epoch)

    def on_train_epoch_start(self) -> None:
        self._freeze_for(self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._random:
            step = self.trainer.fit_loop.epoch_loop.total_batch_idx
            torch.manual_seed((self.seed * 1_000_003 + step) * 1_009 + self.global_rank)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch[0], batch[1]
        logits = self(images)
        losses = picture_losses(
            logits,
            labels,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,  # type: ignore[arg-type]
            focal_gamma=self.focal_gamma,
        )
        with torch.no_grad():
            hard = labels if labels.ndim == 1 else labels.argmax(dim=1)
            right = (logits.argmax(dim=1) == hard).sum()
            # float64 where the device has it: sums of millions of pictures stay exact
            kind = torch.float32 if losses.device.type == "mps" else torch.float64
            totals = torch.stack([losses.sum().to(kind), right.to(kind), torch.full_like(right, len(hard), dtype=kind)])
            self._train_totals = totals if self._train_totals is None else self._train_totals + totals
        return losses.sum() / self._expected_pictures(len(losses))

    def on_train_epoch_end(self) -> None:
        if self._train_totals is None:
            return
        totals = self._train_totals
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        self._train_totals = None
        self.log("train/loss", (totals[0] / totals[2]).float())
        self.log("train/accuracy", (totals[1] / totals[2]).float())

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self._measure(self.val_metrics, batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        logits, losses = self._measure(self.test_metrics, batch)
        labels = batch[1]
        self.confusion.update(logits, labels)
        seen = sum(len(kept[0]) for kept in self._kept)
        index = batch[2] if len(batch) > 2 else torch.arange(seen, seen + len(labels), device=labels.device)
        self._kept.append((index, logits, labels, losses))

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics.compute())
        self.test_confusion = self.confusion.compute().cpu()
        self.test_outputs = self._gathered()
        self.test_metrics.reset()
        self.confusion.reset()
        self._kept = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._train_totals is not None:  # in the middle of an epoch
            checkpoint["train_totals"] = self._own_totals().cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        totals = checkpoint.get("train_totals")
        if totals is not None:
            rank = self.trainer.global_rank if totals.ndim == 2 else 0
            self._train_totals = (totals[rank] if totals.ndim == 2 else totals).to(self.device)

    # ---- for others

    @property
    def test_class_accuracy(self) -> Tensor:
        """(C,): the share of each class's test pictures that was recognised; NaN where it has none."""
        return self.test_confusion.diagonal() / self.test_confusion.sum(dim=1)

    @property
    def needs_find_unused_parameters(self) -> bool:
        """Whether DDP must look for parameters without a gradient: those of the backbone while only the head trains."""
        return self.freeze_mode == "head_first"

    # ---- inside

    def _freeze_for(self, epoch: int) -> None:
        """Which parts train is a function of the epoch alone, so that a resumed run does not freeze again."""
        self.network.freeze(
            self.freeze_mode == "backbone" or (self.freeze_mode == "head_first" and epoch < self.unfreeze_epoch)
        )

    def _expected_pictures(self, count: int) -> float:
        """What a sum of losses is divided by: the pictures of a micro-batch in the mean, whatever this one's share."""
        datamodule: Any = getattr(self._trainer, "datamodule", None) if self._trainer is not None else None
        return float(getattr(datamodule, "expected_micro_batch", count))

    def _measure(self, metrics: MetricCollection, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch[0], batch[1]
        logits = self(images).float()
        losses = picture_losses(logits, labels)
        for name, metric in metrics.items(keep_base=True):
            if name == "loss":
                metric.update(losses)
            else:
                metric.update(logits, labels)
        return logits, losses

    def _own_totals(self) -> Tensor:
        assert self._train_totals is not None
        if self.trainer.world_size == 1:
            return self._train_totals
        gathered: Tensor = self.trainer.strategy.all_gather(self._train_totals)
        return gathered

    def _gathered(self) -> Outputs:
        columns = [torch.cat(column) for column in zip(*self._kept, strict=True)] if self._kept else []
        if self.trainer.world_size > 1:
            from torchmetrics.utilities.distributed import gather_all_tensors

            columns = [torch.cat(gather_all_tensors(column)) for column in columns]
        index, logits, labels, losses = (column.cpu() for column in columns)
        order = index.argsort()
        return Outputs(index[order], logits[order], labels[order], losses[order])


def evaluation_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Loss, accuracy, top-5 accuracy (more than five classes), macro F1 and calibration error, over pictures."""
    metrics: dict[str, Any] = {
        "loss": MeanMetric(),
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "macro_f1": MulticlassF1Score(num_classes, average="macro"),
        "ece": MulticlassCalibrationError(num_classes, n_bins=CALIBRATION_BINS),
    }
    if num_classes > 5:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def _draws_at_random(module: nn.Module) -> bool:
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return dropout or bool(getattr(module, "drop_prob", 0))
