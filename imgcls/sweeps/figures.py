"""The figures of a sweep's page, in the style of a run's report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator, NullLocator

from imgcls.report.figures import BLUE, GREY, INK, ORANGE, Chart, finish, ink, plain_text, shortened
from imgcls.sweeps.space import Choice, Dimension, Space

MAX_LABELS = 12  # on the axis of an option
MAX_CHARACTERS = 14  # of such a label


@dataclass(frozen=True)
class Point:
    """What the figures show of a trial.

    Args:
        number: of the trial.
        values: of the objectives; of a pruned trial its last report, if any.
        params: the value of each option.
        complete: whether it trained to its end.
        best: whether it is the best one, or one of the best compromises.
        reports: the values it reported to the pruner, by the number of the report.
    """

    number: int
    values: tuple[float, ...]
    params: Mapping[str, Any]
    complete: bool
    best: bool = False
    reports: Mapping[int, float] = field(default_factory=dict)


def history(points: Sequence[Point], name: str, mode: str, place: int = 0) -> Chart:
    """The value of each trial, and the best so far."""
    done, pruned = _parts(points, place)

    def draw(axes: Any) -> None:
        _dots(axes, [(point.number, point.values[place]) for point in pruned], "pruned")
        _dots(axes, [(point.number, point.values[place]) for point in done], "complete")
        best = np.maximum.accumulate if mode == "max" else np.minimum.accumulate
        if done:
            numbers, values = [point.number for point in done], best([point.values[place] for point in done])
            axes.step(numbers, values, where="post", color=ORANGE, linewidth=1.5, label="best so far")
        axes.set_ylabel(name)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        finish(axes, "value of each trial", "trial")

    return Chart(f"{name} of each trial, and the best so far", (draw,))


def learning_curves(points: Sequence[Point], name: str) -> Chart:
    """The reports of the trials during their training."""

    def draw(axes: Any) -> None:
        reporting = [point for point in points if point.reports]
        for point in sorted(reporting, key=lambda point: (point.best, point.complete)):
            colour = ORANGE if point.best else BLUE if point.complete else GREY
            style = {"linewidth": 2, "alpha": 1} if point.best else {"linewidth": 1, "alpha": 0.6}
            marker = "." if len(point.reports) == 1 else None
            axes.plot(*zip(*sorted(point.reports.items()), strict=True), color=colour, marker=marker, **style)
        axes.set_ylabel(name)
        finish(axes, "during training", "report")

    return Chart(f"{name} of the trials during training; the best in orange, pruned ones in grey", (draw,))


def compromises(points: Sequence[Point], names: Sequence[str]) -> Chart:
    """The first two objectives against each other."""

    def draw(axes: Any) -> None:
        done = [point for point in points if point.complete]
        for is_best, colour, label in ((False, BLUE, "other trials"), (True, ORANGE, "best compromises")):
            chosen = [point.values for point in done if point.best == is_best]
            if chosen:
                axes.scatter(*list(zip(*chosen, strict=True))[:2], s=18, color=colour, label=label)
        axes.set_ylabel(names[1])
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        finish(axes, "compromises", names[0], whole=False)

    return Chart(f"{names[0]} against {names[1]} of each trial", (draw,))


def importance(shares: Mapping[str, float], name: str) -> Chart:
    """The share of the variance that each option explains."""

    def draw(axes: Any) -> None:
        options = sorted(shares, key=lambda option: shares[option])
        values = [100 * shares[option] for option in options]
        bars = axes.barh(options, values, color=BLUE)
        axes.bar_label(bars, [f"{value:.0f}%" for value in values], padding=3, color=INK, fontsize=8)
        axes.set_xlim(0, max([*values, 1]) * 1.2)
        finish(axes, f"importance for {name}", "% of the variance", whole=False)

    return Chart(f"The importance of each option for {name}", (draw,), (4.3, max(1.6, 0.9 + 0.35 * len(shares))))


def slices(points: Sequence[Point], space: Space, name: str, place: int = 0) -> Chart:
    """Each option against the objective."""
    done, pruned = _parts(points, place)

    def panel(dimension: Dimension) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            axis = _Axis(dimension)
            for chosen, label in ((pruned, "pruned"), (done, "complete")):
                known = [point for point in chosen if dimension.name in point.params]
                _dots(axes, [(axis.at(point.params[dimension.name]), point.values[place]) for point in known], label)
            axes.set_xlim(-0.05, 1.05)
            axes.set_xticks(*axis.ticks(), rotation=30 if isinstance(dimension, Choice) else 0)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylabel(name)
            finish(axes, dimension.name, "", whole=False)

        return draw

    return Chart(f"{name} over each option", tuple(panel(dimension) for dimension in space))


def parallel_coordinates(points: Sequence[Point], space: Space, name: str, mode: str, place: int = 0) -> Chart:
    """One line per complete trial, through its value of each option to its result; the best in orange."""
    done, _ = _parts(points, place)
    reached = [point.values[place] for point in done]
    low, high = min(reached), max(reached)

    def draw(axes: Any) -> None:
        scales = [_Axis(dimension) for dimension in space]

        def height(value: float) -> float:
            return (value - low) / (high - low) if high > low else 0.5

        order = sorted(done, key=lambda point: point.values[place], reverse=mode == "min")
        lines = [
            [(x, scale.at(point.params[scale.dimension.name])) for x, scale in enumerate(scales)]
            + [(len(scales), height(point.values[place]))]
            for point in order
        ]
        goodness = np.array([height(point.values[place]) for point in order])
        shades = matplotlib.colormaps["Blues"](0.25 + 0.65 * (goodness if mode == "max" else 1 - goodness))
        colours: list[Any] = [ORANGE if point.best else shade for point, shade in zip(order, shades, strict=True)]
        widths = [2.5 if point.best else 1.2 for point in order]
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
        f"Each trial's options and {name}, one line per trial", (draw,), (max(6.0, 1.7 * (len(space.names) + 1)), 3.6)
    )


@dataclass(frozen=True)
class _Axis:
    """The positions of an option's values between 0 and 1, and their labels."""

    dimension: Dimension

    def at(self, value: Any) -> float:
        dimension = self.dimension
        if isinstance(dimension, Choice):
            gaps = len(dimension.values) - 1
            return dimension.values.index(dimension.checked(value)) / gaps if gaps else 0.5
        if dimension.high == dimension.low:
            return 0.5
        if dimension.log:
            return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
        return (value - dimension.low) / (dimension.high - dimension.low)

    def ticks(self) -> tuple[list[float], list[str]]:
        dimension = self.dimension
        if isinstance(dimension, Choice):
            every = max(1, math.ceil(len(dimension.values) / MAX_LABELS))
            shown = list(zip(dimension.values, dimension.texts, strict=True))[::every]
            return [self.at(value) for value, _ in shown], [_short(text) for _, text in shown]
        if dimension.log:
            exponents = range(math.floor(math.log10(dimension.low)), math.ceil(math.log10(dimension.high)) + 1)
            values = [10.0**exponent for exponent in exponents if dimension.low <= 10.0**exponent <= dimension.high]
            values = values if len(values) > 1 else [dimension.low, dimension.high]
        else:
            found = MaxNLocator(5, integer=dimension.whole).tick_values(dimension.low, dimension.high)
            values = [float(value) for value in found if dimension.low <= value <= dimension.high]
        return [self.at(value) for value in values], [f"{value:g}" for value in values]


def _number_ticks(low: float, high: float, height: Callable[[float], float]) -> tuple[list[float], list[str]]:
    values = [float(value) for value in MaxNLocator(5).tick_values(low, high) if low <= value <= high] or [low]
    return [height(value) for value in values], [f"{value:g}" for value in values]


def _parts(points: Sequence[Point], place: int) -> tuple[list[Point], list[Point]]:
    """(complete trials, pruned ones) that have a value."""
    known = [point for point in points if len(point.values) > place and math.isfinite(point.values[place])]
    return [point for point in known if point.complete], [point for point in known if not point.complete]


def _dots(axes: Any, points: Sequence[tuple[float, float]], label: str) -> None:
    if points:
        pruned = label == "pruned"
        across, up = zip(*points, strict=True)
        axes.scatter(across, up, s=18, color=GREY if pruned else BLUE, marker="x" if pruned else "o", label=label)


def _short(text: str) -> str:
    return plain_text(shortened(text, MAX_CHARACTERS))
