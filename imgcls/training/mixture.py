"""The model of a fine-tuning: the mixture of its end and its start that validation prefers."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
from torch import Tensor

from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.data.batched import BatchedData
from imgcls.models.classifier import Classifier
from imgcls.models.network import Network
from imgcls.models.schedules import SCHEDULES
from imgcls.portable.calibration import fit_temperature, judge
from imgcls.training.batch_norms import compute_statistics
from imgcls.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from imgcls.training.outputs import outputs_of

log = logging.getLogger(__name__)

State = Mapping[str, Tensor]
START = "start.ckpt"
SHARES = (1.0, 0.75, 0.5, 0.25)
"""The shares of the fine-tuned weights in the mixtures that are compared."""


class Mixture(NamedTuple):
    """Weights between the start of a fine-tuning and an epoch of it.

    Attributes:
        epoch: counted from 0.
        share: that of the epoch; the rest is the start's.
    """

    epoch: int
    share: float


def save_start(network: Network, folder: Path) -> None:
    """Write the weights that a fine-tuning begins with to the folder of its checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state}, folder / START)


def mix_with_start(
    trainer: L.Trainer, classifier: Classifier, data: BatchedData, checkpoints: Checkpoints
) -> dict[str, float]:
    """Load the mixture of the start with the last epoch that validates best, and return its validation.

    Weights in between are often better than both ends (WiSE-FT, Wortsman et al. 2022). The last epoch, whose learning
    rate has annealed, is better than the one with the best accuracy on a hundred images. That one, and the start alone,
    are taken only where the validation images are clearly for them: where fine-tuning has harmed the network.
    Empty if the run did not begin with a solved head, or has no validation images.

    Args:
        trainer: evaluates the mixtures; without callbacks.
        classifier: of the run, after its training.
        data: its data.
        checkpoints: those of the run; `best.ckpt` is written again.
    """
    ends = _read(checkpoints) if trainer.is_global_zero else None
    if trainer.world_size > 1:
        ends = trainer.strategy.broadcast(ends)
    if ends is None or data.source.val is None:
        return {}
    start, best, last = (content["state_dict"] for content in ends)
    best_epoch, last_epoch = ends[1]["epoch"], ends[2]["epoch"]
    if not _has_annealed(classifier, checkpoints):
        last, last_epoch = best, best_epoch
    epochs = {best_epoch: best, last_epoch: last}

    def load(mixture: Mixture) -> None:
        classifier.load_state_dict(mix(start, epochs[mixture.epoch], mixture.share))
        if 0 < mixture.share < 1 and not classifier.network.frozen_norms:
            compute_statistics(classifier.network, data)

    def losses(mixture: Mixture) -> np.ndarray:
        load(mixture)
        outputs = outputs_of(trainer, classifier, data, "val")
        return calibrated_losses(outputs.logits.numpy(), outputs.labels.numpy())

    if "mixture" in ends[1]:  # the run was killed after this was written
        chosen = Mixture(**ends[1]["mixture"])
        classifier.load_state_dict(best)
    else:
        mixtures = [Mixture(last_epoch, share) for share in SHARES]
        others = [Mixture(last_epoch, 0.0), *([Mixture(best_epoch, 1.0)] if best_epoch != last_epoch else [])]
        candidates = [*mixtures, *others]
        chosen = candidates[choose([losses(mixture) for mixture in candidates], preferred=len(mixtures))]
        load(chosen)
    [metrics] = trainer.validate(classifier, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        content = {**ends[1], "state_dict": classifier.state_dict(), "mixture": chosen._asdict()}
        AtomicCheckpointIO().save_checkpoint(content, checkpoints.best)
    log.info(
        "The weights are mixed: %.0f %% of epoch %d, %.0f %% of the start, which validates best.",
        100 * chosen.share,
        chosen.epoch + 1,
        100 - 100 * chosen.share,
    )
    validated = {name: float(value) for name, value in sorted(metrics.items())}
    return {**validated, "best_epoch": chosen.epoch + 1, "finetuned_share": chosen.share}


def _read(checkpoints: Checkpoints) -> list[dict[str, Any]] | None:
    """The contents of the start, the best and the last checkpoint; None if there is no start, or no epoch."""
    files = (checkpoints.folder / START, checkpoints.best, checkpoints.last)
    return [read_checkpoint(file) for file in files] if all(file.is_file() for file in files) else None


def _has_annealed(classifier: Classifier, checkpoints: Checkpoints) -> bool:
    """Whether the learning rate has come down by the last epoch."""
    schedule = classifier.optim.schedule
    return schedule in SCHEDULES and schedule != "constant" and not checkpoints.stopped_early


def calibrated_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log loss of each image, (N,), of (N, C) logits with their best temperature; infinite if they are not finite.

    Few images tell two networks apart by their losses rather than by the number of their errors, but fine-tuning makes
    a network more confident than a regularised head, which would count against it.
    """
    if not np.isfinite(logits).all():
        return np.full(len(labels), np.inf)
    return judge(logits, labels, fit_temperature(logits, labels)).losses


def choose(losses: Sequence[np.ndarray], preferred: int) -> int:
    """The index of the candidate with the lowest mean loss.

    Args:
        losses: (N,) of each candidate, for the same images.
        preferred: number of candidates, the first ones, of which the lowest mean wins. One of the others is chosen only
            if it is better than the winner by more than the standard error of the difference.
    """
    means = [float(np.mean(values)) for values in losses]
    best = min(range(preferred), key=means.__getitem__)
    for other in sorted(range(preferred, len(losses)), key=means.__getitem__):
        if not math.isfinite(means[best]):
            return other
        gain = losses[best] - losses[other]
        if gain.mean() > gain.std(ddof=min(1, len(gain) - 1)) / math.sqrt(len(gain)):
            return other
    return best


def mix(start: State, tuned: State, share: float) -> dict[str, Tensor]:
    """`share` of the floating-point values of `tuned`, the rest of `start`; other values are those of `tuned`."""
    return {
        name: start[name].float().lerp(value.float(), share).to(value.dtype)
        if value.is_floating_point() and name in start
        else value
        for name, value in tuned.items()
    }
