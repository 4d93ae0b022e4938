"""The greedy soup of a run: the average of those of its best epochs that validation approves of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import lightning as L
import torch
from torch import Tensor, nn

from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.data.batch import Batch
from imgcls.data.module import ImageDataModule
from imgcls.models.classifier import Classifier
from imgcls.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint

log = logging.getLogger(__name__)

State = Mapping[str, Tensor]
STATISTICS_BATCHES = 50
"""The most training batches from which the statistics of batch norms are computed anew."""


def average_greedily(
    trainer: L.Trainer, classifier: Classifier, data: ImageDataModule, checkpoints: Checkpoints
) -> dict[str, float]:
    """Load the greedy soup of the kept epochs into `classifier`, write it to `best.ckpt`, return its validation.

    Empty if no epoch joined the best one.

    Args:
        trainer: validates the members; without callbacks.
        classifier: of the run, after its training.
        data: its data.
        checkpoints: those of the run, with the best epochs.
    """
    epochs = [epoch for _, epoch in checkpoints.best_epochs if checkpoints.epoch_file(epoch).is_file()]
    if len(epochs) < 2:
        return {}
    states: list[State] = [read_checkpoint(checkpoints.epoch_file(epoch))["state_dict"] for epoch in epochs]
    found: dict[int, dict[str, float]] = {}

    def score(state: State, members: int) -> float:
        classifier.load_state_dict(state)
        if members > 1 and not classifier.network.frozen_norms:
            compute_statistics(classifier.network, data)
        [metrics] = trainer.validate(classifier, datamodule=data, verbose=False)
        found[members] = {name: float(value) for name, value in sorted(metrics.items())}
        value = float(metrics[checkpoints.monitor])
        return value if checkpoints.mode == "max" else -value

    members, state = greedy_soup(states, score)
    if len(members) < 2:
        classifier.load_state_dict(states[0])
        return {}
    score(state, len(members))
    if trainer.is_global_zero:
        content = {**read_checkpoint(checkpoints.best), "state_dict": classifier.state_dict()}
        AtomicCheckpointIO().save_checkpoint(content, checkpoints.best)
    log.info("The model is the average of the epochs %s.", ", ".join(str(epochs[index]) for index in members))
    return {**found[len(members)], "averaged_epochs": len(members)}


def greedy_soup(states: Sequence[State], score: Callable[[State, int], float]) -> tuple[list[int], State]:
    """The greedy soup (Wortsman et al. 2022): each state joins the average unless that becomes worse.

    Floating-point values are averaged in float32; others are those of the first state.

    Args:
        states: best first.
        score: of an average and its number of members; larger is better.

    Returns:
        The indices of the members and their average, which scores no worse than the first state.
    """
    members, best = [0], score(states[0], 1)
    average = dict(states[0])
    for index in range(1, len(states)):
        share = 1 / (len(members) + 1)
        candidate = {
            name: value.float().lerp(states[index][name].float(), share).to(value.dtype)
            if value.is_floating_point()
            else value
            for name, value in average.items()
        }
        if (value := score(candidate, len(members) + 1)) >= best:
            members, best, average = [*members, index], value, candidate
    return members, average


@torch.no_grad()
def compute_statistics(network: nn.Module, data: ImageDataModule) -> None:
    """Replace the statistics of all batch norms by the mean over training batches, which averaged weights do not have.

    Args:
        network: changed in place, and put back into its mode.
        data: its training images are used as they are in the first epoch.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta, training = [module.momentum for module in norms], network.training
    device = next(network.parameters()).device
    network.eval()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the plain mean over all batches
        module.train()
    for number, raw in enumerate(data.in_order("train", data.batch_size, epoch=0)):
        batch = raw if isinstance(raw, Batch) else data.on_after_batch_transfer(raw, 0)
        if number == STATISTICS_BATCHES or (number and len(batch.images) < data.batch_size):
            break  # the last batch may be too short for a mean
        network(batch.images.to(device))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    network.train(training)
