"""Learning-rate schedules: the share of the largest rate, as a pure function of the optimiser step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from imgcls.errors import UserError
from imgcls.system.checks import check_value, choice

SCHEDULES = ("cosine", "linear", "onecycle", "constant")

# Smith and Topin 2018, with the numbers of torch's OneCycleLR and fastai
ONECYCLE_START, ONECYCLE_END, ONECYCLE_RISE = 1 / 25, 1 / 250_000, 0.3


@dataclass(frozen=True)
class Schedule:
    """The factor of the learning rate at each optimiser step.

    Only the rate changes: 'onecycle' keeps the configured momentum, unlike torch's OneCycleLR, which would override
    `optim.momentum`.

    >>> schedule = Schedule("cosine", steps=12, warmup=2)
    >>> [round(schedule(step), 2) for step in (0, 1, 2, 7, 12)]
    [0.33, 0.67, 1.0, 0.5, 0.0]

    Args:
        kind: 'cosine' or 'linear' decay to `final_ratio`, 'onecycle' (cosine up, then down), or 'constant'.
        steps: optimiser steps of the whole training; infinite only with 'constant'.
        warmup: steps of linear warm-up (cosine for 'onecycle'), at most half of all; 0 with 'onecycle' means three
            tenths of all.
        final_ratio: the last factor of 'cosine' and 'linear'.
        initial_ratio: the factor from which the warm-up starts, except for 'onecycle'.
    """

    kind: str
    steps: float
    warmup: float = 0.0
    final_ratio: float = 0.0
    initial_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_value("optim.schedule", self.kind, choice(*SCHEDULES))
        if math.isinf(self.steps) and self.kind != "constant":
            raise UserError(f"optim.schedule={self.kind} needs a number of epochs or steps to anneal over.")

    @property
    def rise(self) -> float:
        """Steps of warm-up."""
        rise = min(self.warmup, 0.5 * self.steps)
        return rise or ONECYCLE_RISE * self.steps if self.kind == "onecycle" else rise

    def __call__(self, step: int) -> float:
        rise = self.rise
        if self.kind == "onecycle":
            if step < rise:
                return _along_cosine(ONECYCLE_START, 1.0, step / rise)
            return _along_cosine(1.0, ONECYCLE_END, self._progress(step, rise))
        if step < rise:
            return self.initial_ratio + (1 - self.initial_ratio) * (step + 1) / (rise + 1)
        if self.kind == "constant":
            return 1.0
        if self.kind == "linear":
            return 1 + (self.final_ratio - 1) * self._progress(step, rise)
        return _along_cosine(1.0, self.final_ratio, self._progress(step, rise))

    def _progress(self, step: int, rise: float) -> float:
        return min(1.0, (step - rise) / max(1.0, self.steps - rise))


def _along_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
