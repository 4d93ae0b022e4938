"""The greedy soup of a run: the average of those of its best epochs that validation approves of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import lightning as L
from torch import Tensor

from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.data.module import ImageDataModule
from imgcls.models.classifier import Classifier
from imgcls.training.batch_norms import compute_statistics
from imgcls.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from imgcls.training.mixture import mix_with_start

log = logging.getLogger(__name__)

State = Mapping[str, Tensor]


def average_weights(
    trainer: L.Trainer, classifier: Classifier, data: ImageDataModule, checkpoints: Checkpoints
) -> dict[str, float]:
    """Load the average that `checkpoint.average` names into `classifier`, if validation approves of it.

    Arguments and result are those of `average_greedily`.
    """
    average = mix_with_start if checkpoints.average == "start" else average_greedily
    return average(trainer, classifier, data, checkpoints)


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
