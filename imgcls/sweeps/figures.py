"""The figures of a sweep's page, drawn like those of a run's report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator, NullLocator

from imgcls.report.figures import BLUE, GREY, INK, ORANGE, Chart, finish, ink
from imgcls.sweeps.space import Choice, Dimension, Space

MOST_LABELS = 12  # of the values of an option on an axis
SHORT = 14  # characters of such a label


@dataclass(frozen=True)
class Point:
    """A trial as the figures see it.

    Args:
        number: of the trial.
        values: of the objectives; of a pruned trial its last report; empty where there is none.
        params: the value of each option.
        complete: whether it trained to its end.
        best: whether it is the best one, or one of the best compromises.
        reports: what it reported to the pruner, by the number of the report.
    """

    number: int
    values: tuple[float, ...]
    params: Mapping[str, Any]
    complete: bool
    best: bool = False
    reports: Mapping[int, float] = field(default_factory=dict)


def history(points: Sequence[Point], name: str, way: str, place: int = 0) -> Chart:
    """What each trial reached, and the best so far."""
    done, pruned = _parts(points, place)

    def draw(axes: Any) -> None:
        _dots(axes, [(one.number, one.values[place]) for one in pruned], "pruned")
        _dots(axes, [(one.number, one.values[place]) for one in done], "complete")
        best = np.maximum.accumulate if way == "max" else np.minimum.accumulate
        if done:
            numbers, values = [one.number for one in done], best([one.values[place] for one in done])
            axes.step(numbers, values, where="post", color=ORANGE, linewidth=1.5, label="best so far")
        axes.set_ylabel(name)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        finish(axes, "what each trial reached", "trial")

    return Chart(f"{name} of each trial, and the best so far", (draw,))


def learning_curves(points: Sequence[Point], name: str) -> Chart:
    """What the trials reported while they trained."""

    def draw(axes: Any) -> None:
        told = [one for one in points if one.reports]
        for one in sorted(told, key=lambda point: (point.best, point.complete)):
            colour = ORANGE if one.best else BLUE if one.complete else GREY
            steps = sorted(one.reports)
            axes.plot(
                steps,
                [one.reports[step] for step in steps],
                color=colour,
                linewidth=2 if one.best else 1,
                alpha=1 if one.best else 0.6,
                marker="." if len(steps) == 1 else None,
            )
        axes.set_ylabel(name)
        finish(axes, "while they trained", "report")

    return Chart(f"{name} of the trials while they trained; the best in orange, pruned ones in grey", (draw,))


def compromises(points: Sequence[Point], names: Sequence[str]) -> Chart:
    """The first two objectives against each other."""

    def draw(axes: Any) -> None:
        done = [one for one in points if one.complete]
        for wanted, colour, label in ((False, BLUE, "other trials"), (True, ORANGE, "best compromises")):
            chosen = [one.values for one in done if one.best == wanted]
            if chosen:
                axes.scatter([one[0] for one in chosen], [one[1] for one in chosen], s=18, color=colour, label=label)
        axes.set_ylabel(names[1])
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        finish(axes, "compromises", names[0], whole=False)

    return Chart(f"{names[0]} against {names[1]} of each trial", (draw,))


def importance(shares: Mapping[str, float], name: str) -> Chart:
    """How much each option decides."""

    def draw(axes: Any) -> None:
        options = sorted(shares, key=lambda option: shares[option])
        values = [100 * shares[option] for option in options]
        bars = axes.barh(options, values, color=BLUE)
        axes.bar_label(bars, [f"{value:.0f}%" for value in values], padding=3, color=INK, fontsize=8)
        axes.set_xlim(0, max([*values, 1]) * 1.2)
        finish(axes, f"what decides {name}", "% of the variance", whole=False)

    return Chart(f"How much each option decides {name}", (draw,), (4.3, max(1.6, 0.9 + 0.35 * len(shares))))


def slices(points: Sequence[Point], space: Space, name: str, place: int = 0) -> Chart:
    """Each option against the objective."""
    done, pruned = _parts(points, place)

    def panel(dimension: Dimension) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            axis = _Axis(dimension)
            for chosen, label in ((pruned, "pruned"), (done, "complete")):
                found = [one for one in chosen if dimension.name in one.params]
                _dots(axes, [(axis.at(one.params[dimension.name]), one.values[place]) for one in found], label)
            axes.set_xlim(-0.05, 1.05)
            axes.set_xticks(*axis.ticks(), rotation=30 if isinstance(dimension, Choice) else 0)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylabel(name)
            finish(axes, dimension.name, "", whole=False)

        return draw

    return Chart(f"{name} over each option", tuple(panel(one) for one in space.dimensions))


def parallel_coordinates(points: Sequence[Point], space: Space, name: str, way: str, place: int = 0) -> Chart:
    """One line a complete trial, through its value of each option to what it reached; the best in orange."""
    done, _ = _parts(points, place)
    reached = [one.values[place] for one in done]
    low, high = min(reached), max(reached)

    def draw(axes: Any) -> None:
        scales = [_Axis(one) for one in space.dimensions]

        def height(value: float) -> float:
            return (value - low) / (high - low) if high > low else 0.5

        order = sorted(done, key=lambda one: one.values[place], reverse=way == "min")
        lines = [
            [(x, scale.at(one.params[scale.dimension.name])) for x, scale in enumerate(scales)]
            + [(len(scales), height(one.values[place]))]
            for one in order
        ]
        goodness = np.array([height(one.values[place]) for one in order])
        shades = matplotlib.colormaps["Blues"](0.25 + 0.65 * (goodness if way == "max" else 1 - goodness))
        colours: list[Any] = [ORANGE if one.best else shade for one, shade in zip(order, shades, strict=True)]
        widths = [2.5 if one.best else 1.2 for one in order]
        axes.add_collection(LineCollection(lines, colors=colours, linewidths=widths, alpha=0.9))
        names = [*space.names, name]
        ends = [*(scale.ticks() for scale in scales), _number_ticks(low, high, height)]
        for x, (places, labels) in enumerate(ends):
            axes.axvline(x, color=GREY, linewidth=1)
            for y, label in zip(places, labels, strict=True):
                axes.text(x + 0.02, y, label, fontsize=8, color=INK, va="bottom")
        axes.set(xlim=(-0.1, len(names) - 0.75), ylim=(-0.05, 1.08))
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks([])
        ink(axes)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)

    return Chart(
        f"Each trial's options and {name}, one line a trial", (draw,), (max(6.0, 1.7 * (len(space.names) + 1)), 3.6)
    )


class _Axis:
    """Where the values of an option stand between 0 and 1, and what is written there."""

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension

    def at(self, value: Any) -> float:
        one = self.dimension
        if isinstance(one, Choice):
            return one.values.index(one.checked(value)) / max(1, len(one.values) - 1) if len(one.values) > 1 else 0.5
        if one.high == one.low:
            return 0.5
        if one.log:
            return math.log(value / one.low) / math.log(one.high / one.low)
        return (value - one.low) / (one.high - one.low)

    def ticks(self) -> tuple[list[float], list[str]]:
        one = self.dimension
        if isinstance(one, Choice):
            every = max(1, math.ceil(len(one.values) / MOST_LABELS))
            shown = list(zip(one.values, one.texts, strict=True))[::every]
            return [self.at(value) for value, _ in shown], [_short(text) for _, text in shown]
        if one.log:
            exponents = range(math.floor(math.log10(one.low)), math.ceil(math.log10(one.high)) + 1)
            values = [10.0**exponent for exponent in exponents if one.low <= 10.0**exponent <= one.high]
            values = values if len(values) > 1 else [one.low, one.high]
        else:
            found = MaxNLocator(5, integer=one.whole).tick_values(one.low, one.high)
            values = [float(value) for value in found if one.low <= value <= one.high]
        return [self.at(value) for value in values], [f"{value:g}" for value in values]


def _number_ticks(low: float, high: float, height: Callable[[float], float]) -> tuple[list[float], list[str]]:
    values = [float(value) for value in MaxNLocator(5).tick_values(low, high) if low <= value <= high] or [low]
    return [height(value) for value in values], [f"{value:g}" for value in values]


def _parts(points: Sequence[Point], place: int) -> tuple[list[Point], list[Point]]:
    """(complete trials, pruned ones) that have a value."""
    known = [one for one in points if len(one.values) > place and math.isfinite(one.values[place])]
    return [one for one in known if one.complete], [one for one in known if not one.complete]


def _dots(axes: Any, points: Sequence[tuple[float, float]], label: str) -> None:
    if points:
        pruned = label == "pruned"
        across, up = zip(*points, strict=True)
        axes.scatter(across, up, s=18, color=GREY if pruned else BLUE, marker="x" if pruned else "o", label=label)


def _short(text: str) -> str:
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"
