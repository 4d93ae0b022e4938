"""The LightningModule that trains and evaluates a network; all of its metrics are means over images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from imgcls.errors import UserError
from imgcls.models.choices import FREEZING
from imgcls.models.distillation import hard_labels
from imgcls.models.ema import Average
from imgcls.models.losses import picture_losses
from imgcls.models.metrics import Collector, Outputs, compute_metrics, evaluation_metrics, update_metrics
from imgcls.models.multilabel import label_losses, label_metrics, update_label_metrics
from imgcls.models.network import Network
from imgcls.models.optim import AdamW, Optim
from imgcls.system.checks import check_value, choice
from imgcls.system.lightning_internals import (
    can_fuse_optimizer,
    clip_gradients,
    set_up_loader_again,
    trainer_of,
)


class Classifier(L.LightningModule):
    """Trains and evaluates a network on batches `(images, labels)`, to which index and weights may be added.

    The training loss is the mean over the images of an optimiser step, however it is split into micro-batches.
    Validation and test loss are the plain cross entropy, without smoothing, weights or focusing, so that runs can be
    compared. Metrics stay on the device until the epoch ends, and are exact with several processes.

    Args:
        network: the network to train, or a classifier made by `timm.create_model`, whose weights are copied.
        optim: optimiser and schedule.
        class_names: in the order of the logits.
        label_smoothing, class_weights, focal_gamma: see `imgcls.models.losses`.
        negative_gamma: see `imgcls.models.multilabel.label_losses`.
        multilabel: an image has any number of labels, which are then (N, C) in batches.
        loss: another training loss, called as loss(logits, labels) with float32 (N, C) and int64 (N,), or float (N, C)
            for mixed images. Returns the loss of each image, (N,), or their mean, a scalar.
        metrics: further metrics of validation and test by name, updated with probabilities (N, C) and labels (N,).
        freeze: 'none'; 'backbone' trains the head alone; 'head_first' does so for `unfreeze_epoch` epochs.
        unfreeze_epoch: the first epoch in which 'head_first' trains the backbone too.
        freeze_norms: normalise with the backbone's batch-norm statistics as they are, instead of those of each batch.
        channels_last: store images and weights with the channels innermost.
        compile: run the network through torch.compile; a string is the compilation mode.
        seed: of dropout and stochastic depth, which are seeded for each batch, so that a resumed run needs no stored
            state.
    """

    thresholds: Tensor
    """float32 (C,): from which probability an image has each label, with several labels."""

    def __init__(
        self,
        network: Network | nn.Module,
        *,
        optim: Optim | None = None,
        class_names: Sequence[str] | None = None,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        focal_gamma: float = 0.0,
        negative_gamma: float = 0.0,
        multilabel: bool = False,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        freeze: str = "none",
        unfreeze_epoch: int = 1,
        freeze_norms: bool = False,
        channels_last: bool = False,
        compile: bool | str = False,  # noqa: A002 - torch's own name
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_value("model.freeze", freeze, choice(*FREEZING))
        if not isinstance(network, Network):
            from imgcls.models.backbones import network_of

            network = network_of(network)
        count = network.architecture.num_classes
        self.network, self.optim = network, optim or AdamW()
        self.network.frozen_norms = freeze_norms
        self.class_names = tuple(class_names or map(str, range(count)))
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.register_buffer("class_weights", class_weights, persistent=False)
        if isinstance(loss, nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
            raise UserError(
                f"The loss {type(loss).__name__} has weights to train, but only those of the network are trained. "
                "Make them buffers (register_buffer), or layers of a head."
            )
        self.loss = loss
        self.freeze_mode, self.unfreeze_epoch = freeze, unfreeze_epoch
        self.channels_last, self.seed = channels_last, seed
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        if freeze == "backbone":
            self.network.backbone.requires_grad_(False)
        if compile:
            # in place, so that the names in checkpoints do not change
            self.network.compile(mode=compile if isinstance(compile, str) else None)
        self._freeze_for(0)

        self.average: Average | None = None  # set by imgcls.models.ema.WeightAveraging
        self.last_loss = torch.zeros(())
        """Loss of the last micro-batch, a scalar on the device; reading its value waits for the device."""
        self.multilabel, self.negative_gamma = multilabel, negative_gamma
        self.register_buffer("thresholds", torch.full((count,), 0.5), persistent=False)
        make_metrics = label_metrics if multilabel else evaluation_metrics
        self.val_metrics = make_metrics(count, "val/", metrics)
        self.test_metrics = make_metrics(count, "test/", metrics)
        self.test_outputs = Outputs.empty(count)
        self.logs_test = True
        """Whether a test logs its metrics; False where it only collects `test_outputs`, of other images."""
        self._collector: Collector | None = None
        # Sums over the epoch so far: losses, hits, images. Not a buffer, which DDP would overwrite with that of rank 0.
        self._train_totals: Tensor | None = None

    # ---- Lightning's hooks

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images, or (N, F) features of the backbone, to (N, C) logits."""
        if self.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.network(images.to(self.dtype))  # another dtype with trainer.precision=bf16-true

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule, which advances per step."""
        steps = self.trainer.estimated_stepping_batches
        batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        if self.trainer.ckpt_path is not None:
            # Counting the steps has set up the loader before its position was read from the checkpoint, and Lightning
            # would keep that loader: training would resume at the first batch of the epoch.
            set_up_loader_again(self.trainer)
        optimizer, schedule = self.optim.build(
            self.network, steps, min(batches, steps), fused=can_fuse_optimizer(self.trainer)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # FSDP's own: each process has a shard of the gradients, and the norm is that of all shards
        clip_sharded: Any = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)
        if clip_sharded is not None and gradient_clip_val and gradient_clip_algorithm == "norm":
            clip_sharded(gradient_clip_val)
        else:
            clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_start(self) -> None:
        self._freeze_for(self.current_epoch)
        if self._train_totals is not None:
            self._train_totals = self._train_totals.to(self.device)

    def on_train_epoch_start(self) -> None:  # not called where training resumes within an epoch
        self._freeze_for(self.current_epoch)
        self._train_totals = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        sequence = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        seed = int(sequence.generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every kind of device, 0.1 ms per step
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).manual_seed(seed)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch[0], batch[1]
        logits = self(images)
        losses = self._training_losses(logits, labels, weighted=len(batch) > 3 and batch[3] is not None)
        weights = batch[3] if len(batch) > 3 else None
        total = losses.sum() if weights is None else (losses * weights).sum()
        with torch.no_grad():
            hits = self._hits(logits, labels)
            # float64 where the device has it: sums over millions of images stay exact
            dtype = torch.float32 if losses.device.type == "mps" else torch.float64
            totals = torch.stack([total.to(dtype), hits.to(dtype), torch.full_like(hits, len(labels), dtype=dtype)])
            self._train_totals = totals if self._train_totals is None else self._train_totals + totals
        loss = total / self._expected_images(len(losses))
        self.last_loss = loss.detach()
        return loss

    def on_train_epoch_end(self) -> None:
        totals = self._reduce_totals()
        if totals is not None:
            self.log("train/loss", (totals[0] / totals[2]).float(), sync_dist=self._distributed)
            self.log("train/accuracy", (totals[1] / totals[2]).float(), sync_dist=self._distributed)
        self._train_totals = None

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()
        if self._distributed:
            self._broadcast_statistics()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Update the metrics; for callbacks, return the `logits`, float32 (N, C), and `losses`, float32 (N,)."""
        logits, losses = self._evaluate(batch)
        self.last_loss = losses.mean()
        self._update(self.val_metrics, logits, batch[1], losses)
        return {"logits": logits, "losses": losses}

    def on_validation_epoch_end(self) -> None:
        self.log_dict(compute_metrics(self.val_metrics), sync_dist=self._distributed)
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()
        self._collector = Collector(len(self.class_names))

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        logits, losses = self._evaluate(batch)
        self._update(self.test_metrics, logits, batch[1], losses)
        index = batch[2] if len(batch) > 2 else None
        assert self._collector is not None
        self._collector.add(index, logits, batch[1], losses, self.global_rank, self.trainer.world_size)

    def on_test_epoch_end(self) -> None:
        if self.logs_test:
            self.log_dict(compute_metrics(self.test_metrics), sync_dist=self._distributed)
        assert self._collector is not None
        self.test_outputs = self._collector.gather(self.device, self.trainer.world_size)
        self._collector = None
        self.test_metrics.reset()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities, float32 (N, C), of a batch that is the images or has them first."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        logits = self(images).float()
        return torch.sigmoid(logits) if self.multilabel else logits.softmax(dim=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        totals = self._reduce_totals()
        if totals is not None:
            checkpoint["train_totals"] = totals.cpu()
        if self.average is not None and "state_dict" in checkpoint:
            self.average.on_save_checkpoint(checkpoint, prefix="network.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if trainer_of(self) is None or self.trainer.state.fn != "fit":
            return
        if self.average is not None:
            self.average.on_load_checkpoint(checkpoint, prefix="network.")
        totals = checkpoint.get("train_totals")
        if totals is not None:
            self._train_totals = totals if self.global_rank == 0 else torch.zeros_like(totals)

    # ---- results, for callers

    @property
    def test_confusion(self) -> Tensor:
        """Confusion matrix of the test images, int64 (C, C): rows are true classes, columns predicted ones."""
        return self.test_outputs.confusion

    @property
    def test_class_accuracy(self) -> Tensor:
        """Share of each class's test images that was classified correctly, (C,); NaN for a class without any."""
        return self.test_outputs.class_accuracy

    @property
    def needs_find_unused_parameters(self) -> bool:
        """Whether DDP must search for parameters without a gradient.

        DDP decides once which gradients it waits for: none for a backbone that stays frozen. With 'head_first' those of
        the backbone come later, and some backbones stop training parts after the first epochs.
        """
        return self.freeze_mode == "head_first" or self.network.changes_with_epochs

    # ---- inside

    def _freeze_for(self, epoch: int) -> None:
        """Freeze as a function of the epoch alone, so that a resumed run trains the same parts."""
        self.network.begin_epoch(epoch)
        self.network.freeze(
            self.freeze_mode == "backbone" or (self.freeze_mode == "head_first" and epoch < self.unfreeze_epoch)
        )

    def _expected_images(self, count: int) -> float:
        """Mean number of images in a micro-batch, by which a sum of losses is divided; `count` if that is unknown."""
        datamodule: Any = getattr(trainer_of(self), "datamodule", None)
        return float(getattr(datamodule, "expected_micro_batch", count))

    def _training_losses(self, logits: Tensor, labels: Tensor, *, weighted: bool) -> Tensor:
        """The training loss of each image, (N,); where a custom loss returns a mean, that for each."""
        if self.loss is None and self.multilabel:
            return label_losses(
                logits,
                labels,
                label_smoothing=self.label_smoothing,
                class_weights=self.class_weights,  # type: ignore[arg-type]
                focal_gamma=self.focal_gamma,
                negative_gamma=self.negative_gamma,
            )
        if self.loss is None:
            return picture_losses(
                logits,
                labels,
                label_smoothing=self.label_smoothing,
                class_weights=self.class_weights,  # type: ignore[arg-type]
                focal_gamma=self.focal_gamma,
            )
        losses = self.loss(logits.float(), labels.float() if self.multilabel else labels)
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        if shape not in ([(len(labels),)] if weighted else [(), (len(labels),)]):
            raise UserError(
                f"The loss returned {shape} for {len(labels)} images. Return a tensor with the loss of each image, "
                f"({len(labels)},){', which have weights' if weighted else ', or their mean, a scalar'}."
            )
        return losses.expand(len(labels))

    def _evaluate(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits, float32 (N, C), and plain cross entropies, float32 (N,)."""
        # A copy, because a CUDA graph (model.compile=reduce-overhead) overwrites the logits with the next batch's.
        logits = self(batch[0]).to(torch.float32, copy=True)
        return logits, (label_losses if self.multilabel else picture_losses)(logits, batch[1])

    def _update(self, metrics: MetricCollection, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        if self.multilabel:
            update_label_metrics(metrics, logits, labels, losses, self.thresholds)
        else:
            update_metrics(metrics, logits, labels, losses)

    def _hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How many images are classified correctly; with several labels, the sum of their shares of right labels."""
        if self.multilabel:
            return ((logits > 0) == (labels > 0.5)).float().mean(dim=1).sum()
        return (logits.argmax(dim=1) == hard_labels(labels, logits.shape[1])).sum()

    @property
    def _distributed(self) -> bool:
        return self.trainer.world_size > 1

    def _reduce_totals(self) -> Tensor | None:
        """The sums of this epoch so far over all processes, each of which must call this."""
        totals = self._train_totals
        if totals is None or not self._distributed:
            return totals
        return self.trainer.strategy.reduce(totals.clone(), reduce_op="sum")

    def _broadcast_statistics(self) -> None:
        """Give all processes the batch-norm statistics of the first, which are those in checkpoints."""
        for buffer in self.network.buffers():
            torch.distributed.broadcast(buffer, src=0)
