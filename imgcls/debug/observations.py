"""What the rules look at: small summaries of the tensors of some steps, and the losses of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Layers = Mapping[str, float]
"""A number for each layer, by its name in the network."""
Spreads = Mapping[str, Sequence[float]]
"""QUANTILES numbers for each layer, ascending: its quantiles 0, 0.05, …, 1 over the layer's channels."""

QUANTILES = 21
SETTLING = 100  # steps


@dataclass(frozen=True)
class Observation:
    """One optimiser step. A layer that got no gradient (a frozen one) is in none of the gradients and updates."""

    step: int
    epoch: int
    loss: float
    gradient_size: Layers = field(default_factory=dict)
    """Mean of the absolute values."""
    gradient_spread: Layers = field(default_factory=dict)
    """Standard deviation."""
    gradient_zeros: Layers = field(default_factory=dict)
    """Share of zeros, 0 to 1."""
    weight_zeros: Layers = field(default_factory=dict)
    """Share of zeros, 0 to 1; of parameters that are trained."""
    weight_size: Layers = field(default_factory=dict)
    """Largest of the absolute values before the step."""
    update_ratio: Layers = field(default_factory=dict)
    """Largest change of the layer's parameters in this step / `weight_size`."""
    infinite: tuple[str, ...] = ()
    """What holds an infinity or NaN: `loss`, `gradient of …`, `input of …`, `weight of …`."""
    nan: tuple[str, ...] = ()
    """Those losses, gradients and weights among `infinite` that hold a NaN."""
    input_variance: Layers = field(default_factory=dict)
    """Variance of what a convolution or linear layer was given."""
    active: Spreads = field(default_factory=dict)
    """Of a ReLU layer: the share (0 to 1) of the batch for which a channel lets something through."""
    unsaturated: Spreads = field(default_factory=dict)
    """Of a sigmoid or tanh layer: the share (0 to 1) of the batch for which a channel is not at its flat ends."""
    input_mean: float | None = None
    """Mean of the normalised pictures of this step."""
    images: int = 0
    """Pictures in this process's share of the step."""


@dataclass(frozen=True)
class Record:
    """Everything that the rules look at."""

    observations: tuple[Observation, ...] = ()
    losses: tuple[float, ...] = ()
    """Training loss of every optimiser step, in order."""
    rates: tuple[float, ...] = ()
    """Learning rate of every optimiser step."""
    history: tuple[Mapping[str, float], ...] = ()
    """One row an epoch, as in metrics.csv."""
    class_counts: tuple[int, ...] = ()
    """Training pictures of each class, as they are drawn."""
    pauses: tuple[tuple[int, float], ...] = ()
    """(step, seconds) of every step that took long."""
    recognised: tuple[tuple[int, int], ...] = ()
    """Of each class: its pictures in the last validation, and how many of them were recognised."""

    @property
    def warm_up(self) -> int | None:
        """Steps before the learning rate had risen to half of its peak; None while it still rises."""
        if len(self.rates) > 1 and self.rates[-1] > self.rates[-2]:
            return None
        peak = max(self.rates, default=0.0)
        return next((step for step, rate in enumerate(self.rates) if rate >= peak / 2), 0)

    @property
    def settled(self) -> bool:
        """Whether the warm-up is over for so long that the loss of a healthy training has begun to fall."""
        if not self.rates:  # somebody else's trial tells nothing of a schedule
            return True
        warm = self.warm_up
        return warm is not None and (len(self.history) >= 2 or len(self.losses) >= warm + SETTLING)


def share_below(quantiles: Sequence[float], limit: float) -> float:
    """The share (0 to 1) of the values whose evenly spaced `quantiles` are given that lie below `limit`.

    >>> share_below([0.0, 0.0, 0.5, 1.0, 1.0], 0.25)
    0.375
    """
    below = sum(value < limit for value in quantiles)
    if below in (0, len(quantiles)):
        return float(bool(below))
    low, high = quantiles[below - 1], quantiles[below]
    return (below - 1 + (limit - low) / (high - low)) / (len(quantiles) - 1)
