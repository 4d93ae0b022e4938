"""Between the start of a fine-tuning and its best epoch: the mixture of their weights that validation prefers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import numpy as np
from torch import Tensor

from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.data.module import ImageDataModule
from imgcls.models.classifier import Classifier
from imgcls.models.network import Network
from imgcls.portable.calibration import fit_temperature, judge
from imgcls.training.batch_norms import compute_statistics
from imgcls.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from imgcls.training.outputs import outputs_of

log = logging.getLogger(__name__)

State = Mapping[str, Tensor]
START = "start.ckpt"
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""The shares of the fine-tuned weights that are compared; 0 is the solved head on the backbone as it came."""


def save_start(network: Network, folder: Path) -> None:
    """Write the weights that a fine-tuning begins with to the folder of its checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state}, folder / START)


def mix_with_start(
    trainer: L.Trainer, classifier: Classifier, data: ImageDataModule, checkpoints: Checkpoints
) -> dict[str, float]:
    """Load the mixture of start and fine-tuned weights that validates best, and return its validation.

    Weights in between are often better than both ends (WiSE-FT, Wortsman et al. 2022), and where fine-tuning has harmed
    the network, the solved head is what remains. Empty if the fine-tuned weights are the best.

    Args:
        trainer: evaluates the mixtures; without callbacks.
        classifier: of the run, with the fine-tuned weights; batch norms that kept their statistics.
        data: its data.
        checkpoints: those of the run; `best.ckpt` is written again.
    """
    file = checkpoints.folder / START
    content = read_checkpoint(checkpoints.best) if trainer.is_global_zero and checkpoints.best.is_file() else {}
    start: State | None = read_checkpoint(file)["state_dict"] if content and file.is_file() else None
    done: float | None = content.get("finetuned_share")  # a run killed after this was written
    if trainer.world_size > 1:
        start, done = trainer.strategy.broadcast((start, done))
    if start is None or data.source.val is None:
        return {}
    tuned = {name: value.detach().cpu().clone() for name, value in classifier.state_dict().items()}

    def load(share: float) -> None:
        classifier.load_state_dict(mix(start, tuned, share))
        if 0 < share < 1 and not classifier.network.frozen_norms:
            compute_statistics(classifier.network, data)

    losses: dict[float, float] = {}
    for share in SHARES if done is None else (1.0,):
        load(share)
        outputs = outputs_of(trainer, classifier, data, "val")
        losses[share] = calibrated_loss(outputs.logits.numpy(), outputs.labels.numpy())
    best = choose(losses)
    load(best)
    if best == 1 and done is None:
        return {}
    [metrics] = trainer.validate(classifier, datamodule=data, verbose=False)
    if done is None and trainer.is_global_zero:
        content = {**content, "state_dict": classifier.state_dict(), "finetuned_share": best}
        AtomicCheckpointIO().save_checkpoint(content, checkpoints.best)
        log.info(
            "The weights are mixed: %.0f %% fine-tuned, %.0f %% the start, which validates best.",
            100 * best,
            100 - 100 * best,
        )
    validated = {name: float(value) for name, value in sorted(metrics.items())}
    return {**validated, "finetuned_share": best if done is None else done}


def calibrated_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean log loss of (N, C) logits with their own best temperature; infinite if they are not finite.

    Few images tell two networks apart by their losses rather than by the number of their errors, but fine-tuning makes
    a network more confident than a regularised head, which would count against it.
    """
    if not np.isfinite(logits).all():
        return float("inf")
    return judge(logits, labels, fit_temperature(logits, labels)).quality.nll


def choose(losses: Mapping[float, float]) -> float:
    """The share with the lowest loss; of equal ones the first."""
    return min(losses, key=lambda share: losses[share])


def mix(start: State, tuned: State, share: float) -> dict[str, Tensor]:
    """`share` of the floating-point values of `tuned`, the rest of `start`; other values are those of `tuned`."""
    return {
        name: start[name].float().lerp(value.float(), share).to(value.dtype)
        if value.is_floating_point() and name in start
        else value
        for name, value in tuned.items()
    }
