"""The promise about false alarms holds for any reference and any distribution; a change is noticed whenever it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imgcls.monitoring.evidence import MONTH, bound_of_count, change_evidence, tail, wealth


def test_the_bounds_hold_as_often_as_promised() -> None:
    """Of a tail of a reference, the true probability is known: that of a uniform number is the value itself."""
    dice = np.random.default_rng(0)
    for share in (0.01, 0.2):
        values, bounds = np.array([tail(dice.random(60), share, 0.1) for _ in range(4000)]).T
        assert (values > bounds).mean() == pytest.approx(0.1, abs=0.02)
    counts = dice.binomial(60, 0.05, 4000)
    assert (np.array([bound_of_count(count, 60, 0.1) for count in counts]) < 0.05).mean() <= 0.1
    assert bound_of_count(60, 60, 0.1) == 1


@pytest.mark.parametrize(("statistic", "limit"), [(change_evidence, 1000 / 0.1), (wealth, 1 / 0.1)])
def test_false_alarms_are_as_rare_as_promised(statistic: Any, limit: float) -> None:
    """10 % at most by the bets, and 10 % by the bounds, with a reference of 40 numbers."""
    dice, alarms, naive = np.random.default_rng(1), 0, 0
    for _ in range(200):
        reference, stream = np.exp(dice.normal(size=40)), np.exp(dice.normal(size=1000))
        value, bound = tail(reference, 0.2, 0.1)
        alarms += statistic([(stream < value, bound)], 1000).max() > np.log(limit)
        naive += statistic([(stream < value, 0.2)], 1000).max() > np.log(limit)
    assert alarms / 200 <= 0.2
    assert naive / 200 > 0.2, "the share itself is no bound"


def test_a_late_change_is_noticed_as_an_early_one() -> None:
    dice = np.random.default_rng(2)
    reference = dice.normal(size=1000)
    for usual in (0, 100_000):
        stream = dice.normal(size=usual + 500)
        stream[usual:] -= 4 * (dice.random(500) < 0.1)
        events = [(stream < value, bound) for value, bound in (tail(reference, share, 0.0003) for share in (0.01, 0.2))]
        evidence = change_evidence(events, len(stream)) - np.log(MONTH / 0.003)
        assert evidence[: usual + 10].max() < 0
        assert evidence[usual:].max() > 0
