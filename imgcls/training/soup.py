"""The greedy soup: the average of those epochs of a run, or of those runs, that validation approves of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import lightning as L
import torch
from torch import Tensor

from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.data.batched import BatchedData
from imgcls.models.classifier import Classifier
from imgcls.training.batch_norms import compute_statistics
from imgcls.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from imgcls.training.mixture import mix_with_start

log = logging.getLogger(__name__)

State = Mapping[str, Tensor]


def average_weights(
    trainer: L.Trainer, classifier: Classifier, data: BatchedData, checkpoints: Checkpoints
) -> dict[str, float]:
    """Load the average that `checkpoint.average` names into `classifier`, if validation approves of it.

    Arguments and result are those of `average_greedily`.
    """
    average = mix_with_start if checkpoints.average == "start" else average_greedily
    return average(trainer, classifier, data, checkpoints)


def average_greedily(
    trainer: L.Trainer, classifier: Classifier, data: BatchedData, checkpoints: Checkpoints
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
    score = Scorer(trainer, classifier, data, checkpoints.monitor, checkpoints.mode, statistics_differ(states))
    members, state = greedy_soup(states, score)
    if len(members) < 2:
        classifier.load_state_dict(states[0])
        return {}
    score(state, len(members))
    if trainer.is_global_zero:
        content = {**read_checkpoint(checkpoints.best), "state_dict": classifier.state_dict()}
        AtomicCheckpointIO().save_checkpoint(content, checkpoints.best)
    log.info("The model is the average of the epochs %s.", ", ".join(str(epochs[index] + 1) for index in members))
    return {**score.metrics, "averaged_epochs": len(members)}


@dataclass
class Scorer:
    """Scores weights on the validation images; larger is better. The weights stay in the classifier.

    Attributes:
        trainer: without callbacks.
        classifier: which the weights are loaded into.
        data: its data.
        monitor: the validation metric.
        mode: 'max' or 'min'.
        adapts: whether an average needs its own batch-norm statistics.
        metrics: the validation metrics of the last weights.
    """

    trainer: L.Trainer
    classifier: Classifier
    data: BatchedData
    monitor: str
    mode: str
    adapts: bool
    metrics: dict[str, float] = field(default_factory=dict)

    def __call__(self, state: State, members: int) -> float:
        """The score of `state`, the average of this number of members."""
        self.classifier.load_state_dict(state)
        if members > 1 and self.adapts:
            compute_statistics(self.classifier.network, self.data)
        [metrics] = self.trainer.validate(self.classifier, datamodule=self.data, verbose=False)
        self.metrics = {name: float(value) for name, value in sorted(metrics.items())}
        value = self.metrics[self.monitor]
        return value if self.mode == "max" else -value


def statistics_differ(states: Sequence[State]) -> bool:
    """Whether the states have different batch-norm statistics: those of a frozen backbone are the same."""
    names = [name for name in states[0] if name.endswith("running_mean")]
    return any(not torch.equal(states[0][name], state[name]) for state in states[1:] for name in names)


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
