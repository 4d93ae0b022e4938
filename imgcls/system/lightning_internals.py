"""What imgcls needs of Lightning 2.6 that Lightning does not promise to keep: the one place to look after an upgrade.

`Sharded._setup_model` in imgcls.training.strategies, which overrides a method of FSDPStrategy, is one more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning as L
    import torch


def is_within_step(trainer: L.Trainer) -> bool:
    """Whether gradients are still being accumulated: the last batch has not ended a step."""
    return trainer.fit_loop._should_accumulate()


def is_last_batch(trainer: L.Trainer) -> bool:
    """Whether the current training batch is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def batches_begun(trainer: L.Trainer) -> int:
    """The training batches of this epoch that have started, with those before a resume."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def batch_number(trainer: L.Trainer) -> int:
    """The number of the current training batch over all epochs, from 0; -1 before the first."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def checkpoint_of_weights(trainer: L.Trainer) -> dict[str, Any]:
    """What `trainer.save_checkpoint(…, weights_only=True)` would write, in tensors that training keeps changing."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=True)


def set_up_loader_again(trainer: L.Trainer) -> None:
    """Let the start of training set up the training loader again, which reads its position from a checkpoint."""
    trainer.fit_loop._combined_loader = None


def trainer_of(module: L.LightningModule) -> L.Trainer | None:
    """The trainer that `module` is attached to; None where its property `trainer` would raise."""
    return module._trainer


def can_fuse_optimizer(trainer: L.Trainer) -> bool:
    """Whether the optimiser may be fused: not with a gradient scaler, whose gradients could then not be clipped."""
    return "mixed" not in str(trainer.precision) or _is_mixed_without_scaler(trainer)


def clip_gradients(
    module: L.LightningModule, optimizer: torch.optim.Optimizer, value: float | None, algorithm: str | None
) -> None:
    """Clip as Lightning does, also for a fused optimiser in bfloat16, which MixedPrecision refuses without a reason."""
    from lightning.pytorch.plugins import Precision

    if value and _is_mixed_without_scaler(module.trainer):
        Precision.clip_gradients(module.trainer.precision_plugin, optimizer, value, algorithm or "norm")  # type: ignore[arg-type]
    else:
        module.clip_gradients(optimizer, value, algorithm)


def _is_mixed_without_scaler(trainer: L.Trainer) -> bool:
    from lightning.pytorch.plugins import MixedPrecision

    return isinstance(trainer.precision_plugin, MixedPrecision) and trainer.precision_plugin.scaler is None
