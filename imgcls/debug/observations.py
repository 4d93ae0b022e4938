"""What is written down of a training step: small summaries of its tensors, one JSON line a step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Layers = Mapping[str, float]
"""A number for each layer, by its name in the network."""


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
    update_ratio: Layers = field(default_factory=dict)
    """Largest change of the layer's parameters in this step / largest of their absolute values before it."""
    infinite: tuple[str, ...] = ()
    """What holds an infinity or NaN: `loss`, `gradient of …`, `output of …`, `weight of …`."""
    output_variance: Layers = field(default_factory=dict)
    """Variance of what a convolution or linear layer was given."""
    dead: Layers = field(default_factory=dict)
    """Of a ReLU layer: the share of its channels that are active for less than 1 % of the batch."""
    saturated: Layers = field(default_factory=dict)
    """Of a sigmoid or tanh layer: the share of its outputs at the flat ends."""
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
    """(step, seconds) of every step that took a minute or more."""


def write_observations(observations: Iterable[Observation]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(one)) + "\n" for one in observations)


def read_observations(file: Path) -> Iterator[Observation]:
    """What `write_observations` wrote; nothing where there is no file."""
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        values: dict[str, Any] = json.loads(line)
        yield Observation(**{**values, "infinite": tuple(values["infinite"])})
