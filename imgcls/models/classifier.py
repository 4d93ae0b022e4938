"""The one LightningModule: a network, its loss, its optimiser, and numbers that are means over pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from imgcls.errors import UserError, nearest
from imgcls.models.choices import FREEZING
from imgcls.models.ema import Average
from imgcls.models.losses import picture_losses
from imgcls.models.measuring import Collector, Outputs, evaluation_metrics, update
from imgcls.models.network import Network
from imgcls.models.optim import AdamW, Optim


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
        compile: run the network through torch.compile; a text is the mode of its compilation.
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
        compile: bool | str = False,  # noqa: A002 - torch's own word
        seed: int = 0,
    ) -> None:
        super().__init__()
        if freeze not in FREEZING:
            raise UserError(f"model.freeze={freeze}: {nearest(freeze, FREEZING)}")
        count = network.architecture.num_classes
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
            # in place, so that the names in checkpoints stay what they are
            self.network.compile(mode=compile if isinstance(compile, str) else None)
        self._freeze_for(0)

        self.average: Average | None = None  # set by imgcls.models.ema.WeightAveraging
        self.last_loss = torch.zeros(())
        """The loss of the last micro-batch, on the device; reading its value waits for the device."""
        self.val_metrics = evaluation_metrics(count, "val/")
        self.test_metrics = evaluation_metrics(count, "test/")
        self.test_outputs = Outputs.empty(count)
        self._collector = Collector(count)
        # Sums over the epoch so far: losses, hits, pictures. No buffer, which DDP would overwrite with those of rank 0.
        self._train_totals: Tensor | None = None

    # ---- what Lightning calls

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pictures, or (N, F) features of the backbone, to (N, C) scores."""
        if self.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.dtype != images.dtype:  # the weights' precision is not the pictures' with trainer.precision=bf16-true
            images = images.to(self.dtype)
        scores: Tensor = self.network(images)
        return scores

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, and its schedule by the step."""
        steps = self.trainer.estimated_stepping_batches
        batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        if self.trainer.ckpt_path is not None:
            # Counting the steps has set up the loader before its position was read from the checkpoint, and Lightning
            # would leave it at that: training would go on at the first batch of the epoch.
            self.trainer.fit_loop._combined_loader = None
        optimizer, schedule = self.optim.build(
            self.network, steps, min(batches, steps), fused="mixed" not in str(self.trainer.precision)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # FSDP's own, where each process has a share of the gradients, and their norm is that of all shares
        of_shares: Any = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)
        if of_shares is not None and gradient_clip_val and gradient_clip_algorithm == "norm":
            of_shares(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_start(self) -> None:
        self._freeze_for(self.current_epoch)
        if self._train_totals is not None:
            self._train_totals = self._train_totals.to(self.device)

    def on_train_epoch_start(self) -> None:  # not called where training goes on in the middle of an epoch
        self._freeze_for(self.current_epoch)
        self._train_totals = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        place = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        seed = int(place.generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every kind of device, for 0.1 ms a step
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).manual_seed(seed)

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
        total = losses.sum()
        with torch.no_grad():
            hard = labels if labels.ndim == 1 else labels.argmax(dim=1)
            right = (logits.argmax(dim=1) == hard).sum()
            # float64 where the device has it: sums of millions of pictures stay exact
            kind = torch.float32 if losses.device.type == "mps" else torch.float64
            totals = torch.stack([total.to(kind), right.to(kind), torch.full_like(right, len(hard), dtype=kind)])
            self._train_totals = totals if self._train_totals is None else self._train_totals + totals
        loss = total / self._expected_pictures(len(losses))
        self.last_loss = loss.detach()
        return loss

    def on_train_epoch_end(self) -> None:
        totals = self._sum_of_totals()
        if totals is not None:
            self.log("train/loss", (totals[0] / totals[2]).float(), sync_dist=self._several)
            self.log("train/accuracy", (totals[1] / totals[2]).float(), sync_dist=self._several)
        self._train_totals = None

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()
        if self._several:
            self._share_statistics()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        logits, losses = self._look_at(batch)
        self.last_loss = losses.mean()
        update(self.val_metrics, logits, batch[1], losses)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.val_metrics.compute(), sync_dist=self._several)
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()
        self._collector = Collector(len(self.class_names))

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        logits, losses = self._look_at(batch)
        update(self.test_metrics, logits, batch[1], losses)
        index = batch[2] if len(batch) > 2 else None
        self._collector.add(index, logits, batch[1], losses, self.global_rank, self.trainer.world_size)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics.compute(), sync_dist=self._several)
        self.test_outputs = self._collector.gather(self.device, self.trainer.world_size)
        self.test_metrics.reset()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probabilities of the classes, float32 (N, C), for a batch of pictures, alone or as its first part."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        probabilities: Tensor = self(images).float().softmax(dim=1)
        return probabilities

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        totals = self._sum_of_totals()
        if totals is not None:
            checkpoint["train_totals"] = totals.cpu()
        if self.average is not None and "state_dict" in checkpoint:
            self.average.on_save_checkpoint(checkpoint, prefix="network.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is None or self.trainer.state.fn != "fit":
            return
        if self.average is not None:
            self.average.on_load_checkpoint(checkpoint, prefix="network.")
        totals = checkpoint.get("train_totals")
        if totals is not None:
            self._train_totals = totals if self.global_rank == 0 else torch.zeros_like(totals)

    # ---- for others

    @property
    def test_confusion(self) -> Tensor:
        """int64 (C, C): how many test pictures of a class (row) were taken for which (column)."""
        return self.test_outputs.confusion

    @property
    def test_class_accuracy(self) -> Tensor:
        """(C,): the share of each class's test pictures that was recognised; NaN where it has none."""
        confusion = self.test_confusion
        return confusion.diagonal() / confusion.sum(dim=1)

    @property
    def needs_find_unused_parameters(self) -> bool:
        """Whether DDP must look for parameters that get no gradient.

        Those of a backbone that is frozen for good need none, and DDP leaves them alone. Those of 'head_first' need
        one later, others only in the first epochs, and DDP decides once what it waits for.
        """
        return self.freeze_mode == "head_first" or self.network.changes_with_epochs

    # ---- inside

    def _freeze_for(self, epoch: int) -> None:
        """Which parts train is a function of the epoch alone, so that a resumed run does not freeze again."""
        self.network.begin_epoch(epoch)
        self.network.freeze(
            self.freeze_mode == "backbone" or (self.freeze_mode == "head_first" and epoch < self.unfreeze_epoch)
        )

    def _expected_pictures(self, count: int) -> float:
        """What a sum of losses is divided by: the pictures of a micro-batch in the mean, whatever this one's share."""
        datamodule: Any = getattr(self._trainer, "datamodule", None) if self._trainer is not None else None
        return float(getattr(datamodule, "expected_micro_batch", count))

    def _look_at(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores, float32 (N, C), and plain cross entropies, float32 (N,)."""
        # A copy, because a CUDA graph (model.compile=reduce-overhead) writes the next batch's scores to the same place.
        logits = self(batch[0]).to(torch.float32, copy=True)
        return logits, picture_losses(logits, batch[1])

    @property
    def _several(self) -> bool:
        return self.trainer.world_size > 1

    def _sum_of_totals(self) -> Tensor | None:
        """The sums of this epoch so far over all processes; all of them have to ask."""
        totals = self._train_totals
        if totals is None or not self._several:
            return totals
        summed: Tensor = self.trainer.strategy.reduce(totals.clone(), reduce_op="sum")
        return summed

    def _share_statistics(self) -> None:
        """Give all processes the batch-norm statistics of the first, which are those that checkpoints hold."""
        for buffer in self.network.buffers():
            torch.distributed.broadcast(buffer, src=0)
