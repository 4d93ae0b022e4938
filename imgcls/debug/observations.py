"""What the rules check: small summaries of the tensors in some steps, and the losses of all steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imgcls.debug.series import Series

Layers = Mapping[str, float]
"""A number per layer, by its name in the network."""
Spreads = Mapping[str, Sequence[float]]
"""QUANTILES numbers per layer, ascending: the quantiles 0, 0.05, …, 1 over the layer's channels."""

QUANTILES = 21
SETTLING_STEPS = 100


@dataclass(frozen=True)
class Observation:
    """One optimiser step. Gradients and updates hold no layer without a gradient (a frozen one)."""

    step: int
    epoch: int
    loss: float
    gradient_size: Layers = field(default_factory=dict)
    """Mean absolute value."""
    gradient_spread: Layers = field(default_factory=dict)
    """Standard deviation."""
    gradient_zeros: Layers = field(default_factory=dict)
    """Share of zeros, 0 to 1."""
    weight_zeros: Layers = field(default_factory=dict)
    """Share of zeros (0 to 1) in trained parameters."""
    weight_size: Layers = field(default_factory=dict)
    """Largest absolute value before the step."""
    update_ratio: Layers = field(default_factory=dict)
    """Largest change of the layer's parameters in this step, divided by `weight_size`."""
    infinite: tuple[str, ...] = ()
    """What holds an infinity or NaN: `loss`, `gradient of …`, `input of …`, `weight of …`."""
    nan: tuple[str, ...] = ()
    """Those losses, gradients and weights among `infinite` that hold a NaN."""
    input_variance: Layers = field(default_factory=dict)
    """Variance of the input of a convolution or linear layer."""
    active: Spreads = field(default_factory=dict)
    """Of a ReLU layer: the share (0 to 1) of the batch for which a channel is above zero."""
    unsaturated: Spreads = field(default_factory=dict)
    """Of a sigmoid or tanh layer: the share (0 to 1) of the batch for which a channel is not saturated."""
    input_mean: float | None = None
    """Mean of this step's normalised images."""
    images: int = 0
    """Number of images in this process's share of the step."""


FAR_BELOW = 0.7
"""Of the loss of a guess: a training that begins below it has weights that were good from the start."""


@dataclass(frozen=True)
class Record:
    """Everything the rules check."""

    observations: tuple[Observation, ...] = ()
    losses: Series = field(default_factory=Series)
    """Training loss of every optimiser step, in order."""
    rates: Series = field(default_factory=Series)
    """Learning rate of every optimiser step."""
    history: tuple[Mapping[str, float], ...] = ()
    """One row per epoch, as in metrics.csv."""
    class_counts: tuple[int, ...] = ()
    """Training images of each class, as they are drawn."""
    pauses: tuple[tuple[int, float], ...] = ()
    """(step, seconds) of every step that took long."""
    recognised: tuple[tuple[int, int], ...] = ()
    """For each class: its images in the last validation, and how many of them were classified correctly."""

    @property
    def warm_up(self) -> int | None:
        """Steps before the learning rate reached half of its peak; None while it still rises."""
        if len(self.rates) > 1 and self.rates[-1] > self.rates[-2]:
            return None
        return self.rates.half_peak

    @property
    def guess_loss(self) -> float:
        """The loss of guessing each class as often as it is drawn, its entropy; 0 if the classes are not known."""
        total = sum(self.class_counts)
        return -sum(count / total * math.log(count / total) for count in self.class_counts if count)

    def is_good(self, loss: float) -> bool:
        """Whether `loss` is far below that of a guess. Never where images have several labels: a guess is not known."""
        if self.history and "train/accuracy" not in self.history[-1]:
            return False
        return loss < FAR_BELOW * self.guess_loss

    @property
    def settled(self) -> bool:
        """Whether the warm-up ended long enough ago for the loss of a healthy training to have begun to fall."""
        if not self.rates:  # a trial recorded elsewhere holds no schedule
            return True
        warm_up = self.warm_up
        return warm_up is not None and (len(self.history) >= 2 or len(self.losses) >= warm_up + SETTLING_STEPS)


def share_below(quantiles: Sequence[float], limit: float) -> float:
    """The share (0 to 1) of values below `limit`, from the evenly spaced `quantiles` of these values.

    >>> share_below([0.0, 0.0, 0.5, 1.0, 1.0], 0.25)
    0.375
    """
    below = sum(value < limit for value in quantiles)
    if below in (0, len(quantiles)):
        return float(bool(below))
    low, high = quantiles[below - 1], quantiles[below]
    return (below - 1 + (limit - low) / (high - low)) / (len(quantiles) - 1)
