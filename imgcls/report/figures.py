"""The figures of a report, drawn with matplotlib and without its global state.

On the page each panel is an SVG of its own, so that panels flow below each other on a phone, stay sharp, and take
the page's colours in the dark; as a file a figure is one PNG with all of its panels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from imgcls.report.calibration import BINS

BLUE, ORANGE, GREEN, GREY, INK = "#2a78c8", "#d9772b", "#3a9a5b", "#8a8f98", "#1d2329"
SERIES = (BLUE, ORANGE, GREEN, "#9a5fc0", "#c24b5a", "#5b8f94", "#a07c3b", GREY)
DPI = 130
MOST_CLASSES = 30  # of a confusion matrix that can still be read
MOST_POINTS = 400  # of a curve
FLATTENS = 10  # times the median: a value beyond makes the axis logarithmic
PARTS = {"data_wait": "waiting for data", "forward": "forward", "backward": "backward", "optimiser": "optimiser"}


@dataclass(frozen=True)
class Steps:
    """What is known of every optimiser step of a run, float64 (steps,)."""

    loss: np.ndarray
    rate: np.ndarray


@dataclass(frozen=True)
class Chart:
    """Panels, each drawn by a function of its axes, and the sentence that stands for them."""

    alt: str
    panels: tuple[Callable[[Any], None], ...]
    size: tuple[float, float] = (4.3, 2.9)
    """Of a panel, inches."""

    def as_png(self) -> bytes:
        """All panels beside each other, as a PNG file."""
        pixels = [np.asarray(canvas.buffer_rgba())[..., :3] for canvas in self._canvases]
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate(pixels, axis=1)).save(buffer, "png", dpi=(DPI, DPI))
        return buffer.getvalue()

    def as_svgs(self) -> list[str]:
        """Each panel as an <svg> element whose ink is the page's."""
        drawn = []
        for number, figure in enumerate(canvas.figure for canvas in self._canvases):
            for patch in (figure.patch, *(axes.patch for axes in figure.axes[:1])):
                patch.set_visible(False)
            text = io.StringIO()
            with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{self.alt}{number}"}):
                FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
            drawn.append(_for_page(text.getvalue(), self.alt if number == 0 else ""))
        return drawn

    @cached_property
    def _canvases(self) -> list[FigureCanvasAgg]:
        """Each panel, drawn and laid out, which takes longer than all else: once for the file and the page."""
        canvases = []
        for panel in self.panels:
            figure = Figure(figsize=self.size, layout="constrained", dpi=DPI)
            panel(figure.add_subplot())
            canvases.append(FigureCanvasAgg(figure))
            canvases[-1].draw()
            figure.set_layout_engine("none")
        return canvases


def learning_curves(runs: Mapping[str, Sequence[Mapping[str, float]]], steps: Steps | None = None) -> Chart:
    """Loss, accuracy and learning rate over the epochs of each run; of one run, training against validation.

    With the `steps` of one run, its learning rate and the training loss are also drawn step by step.
    """
    alone = len(runs) == 1

    def quantity(name: str) -> Callable[[Any], None]:
        names = (f"train/{name}", f"val/{name}")

        def draw(axes: Any) -> None:
            values = np.array([row[one] for rows in runs.values() for row in rows for one in names if one in row])
            values = values[np.isfinite(values)]
            if name == "loss" and len(values) and values.min() > 0 and values.max() > FLATTENS * np.median(values):
                axes.set_yscale("log")  # one bad epoch would flatten the others
            for number, (run, history) in enumerate(runs.items()):
                for part, word in (("train", "training"), ("val", "validation")):
                    points = [(row["epoch"] + 1, row[f"{part}/{name}"]) for row in history if f"{part}/{name}" in row]
                    if not points:
                        continue
                    colour = (ORANGE if part == "val" else BLUE) if alone else SERIES[number % len(SERIES)]
                    dashed = not alone and part == "train"
                    _line(axes, points, colour, word if alone else None if dashed else run, dashed)
            finish(axes, name)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, labelcolor=INK, fontsize=8)

        return draw

    def rate(axes: Any) -> None:
        for number, history in enumerate(runs.values()):
            points = [(row["epoch"] + 1, row["lr"]) for row in history if "lr" in row]
            if points:
                _line(axes, points, GREY if alone else SERIES[number % len(SERIES)])
        finish(axes, "learning rate after the epoch")

    known = {name.rpartition("/")[2] for rows in runs.values() for row in rows for name in row}
    several = [name for name in ("loss", "accuracy") if name in known]
    panels = [*map(quantity, several), rate]
    if steps is not None and len(steps.loss) > 1:
        panels[-1:] = [_over_steps(steps.loss, "training loss of each step", BLUE)]
        panels += [_over_steps(steps.rate, "learning rate")] if len(steps.rate) else []
    return Chart("Loss, accuracy and learning rate over the training", tuple(panels))


def _over_steps(values: np.ndarray, title: str, colour: str = GREY) -> Callable[[Any], None]:
    """Each value where there are few; the mean of each of 400 stretches, and the span of its values, where many."""

    values = np.where(np.isfinite(values), values, np.nan)

    def draw(axes: Any) -> None:
        parts = np.array_split(values, min(len(values), MOST_POINTS))
        places = np.cumsum([len(part) for part in parts])
        axes.plot(places, [part.mean() for part in parts], color=colour, linewidth=1.2)
        if len(values) > MOST_POINTS:
            low, high = ([limit(part) for part in parts] for limit in (np.min, np.max))
            axes.fill_between(places, low, high, color=colour, alpha=0.25, linewidth=0)
        finish(axes, title, "step")

    return draw


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Chart:
    """What was taken for what: rows are what the pictures show, columns what was seen, as shares of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    short = [name if len(name) <= 22 else name[:21] + "…" for name in names]

    def draw(axes: Any) -> None:
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.5)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xticks(np.arange(len(names)) + 0.5, short, rotation=90)
        axes.set_yticks(np.arange(len(names)) + 0.5, short)
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "#ffffff" if shares[row, column] > 0.5 else "#000000"
            axes.text(
                column + 0.5, row + 0.5, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=7
            )
        ink(axes)
        axes.tick_params(length=0)
        axes.set_xlabel("seen")
        axes.set_ylabel("shown")

    side = 2.2 + 0.32 * len(names)
    return Chart("Confusion matrix: rows are what the pictures show, columns what was seen", (draw,), (side, side))


def confusion_pixels(counts: np.ndarray) -> bytes:
    """The confusion matrix of many classes, a pixel a cell, as a PNG file; darker is a larger share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = matplotlib.colormaps["Blues"](np.sqrt(shares))[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.rint(colours * 255).astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def reliability(confidence: np.ndarray, correct: np.ndarray) -> Chart:
    """How often the model is right when it is so sure: on the diagonal, its confidence can be believed."""
    finite = np.isfinite(confidence)  # a network of NaNs is sure of nothing
    confidence, correct = confidence[finite], correct[finite]
    place = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    filled = counts > 0
    hits = np.bincount(place, weights=correct, minlength=BINS)[filled] / counts[filled]
    sure = np.bincount(place, weights=confidence, minlength=BINS)[filled] / counts[filled]

    def diagram(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        axes.plot(sure, hits, color=BLUE, marker="o", markersize=4)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel="share that is right")
        finish(axes, "calibration", "confidence", whole=False)

    def amount(axes: Any) -> None:
        axes.bar((np.arange(BINS) + 0.5) / BINS, counts, width=0.9 / BINS, color=BLUE)
        axes.set(xlim=(0, 1), ylabel="pictures")
        finish(axes, "how sure it is", "confidence", whole=False)

    return Chart("Share of right answers by confidence, and how often each confidence occurs", (diagram, amount))


def profile_shares(profile: Mapping[str, Any]) -> Chart:
    """Where the time of the run went, and of its steps, in %."""

    def bars(title: str, shares: Mapping[str, float]) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            names = list(shares)[::-1]
            values = [100 * shares[name] for name in names]
            drawn = axes.barh([PARTS.get(name, name) for name in names], values, color=BLUE)
            axes.bar_label(drawn, [f"{value:.0f}%" for value in values], padding=3, color=INK, fontsize=8)
            axes.set_xlim(0, max([*values, 1]) * 1.2)
            finish(axes, title, "% of the time", whole=False)

        return draw

    phases = {name: one["share"] for name, one in profile.get("summary", {}).items()}
    parts = {name: one["share"] for name, one in profile.get("steps", {}).get("parts", {}).items()}
    panels = [bars(title, shares) for title, shares in (("the run", phases), ("a step", parts)) if shares]
    timeline = profile.get("timeline", [])

    def machine(axes: Any) -> None:
        for (name, label), colour in zip(
            {"cpu": "processors", "memory": "memory", "gpu": "GPU", "gpu_memory": "GPU memory"}.items(),
            SERIES,
            strict=False,
        ):
            points = [(one["seconds"], one[name]) for one in timeline if name in one]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1, label=label)
        axes.set(ylim=(0, 102), ylabel="%")
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        finish(axes, "the machine", "seconds", whole=False)

    if len(timeline) > 1:
        panels.append(machine)
    return Chart("Where the time of the run and of a step went, and how busy the machine was", tuple(panels))


def _line(
    axes: Any, points: list[tuple[float, float]], colour: str, label: str | None = None, dash: bool = False
) -> None:
    axes.plot(
        *zip(*points, strict=True),
        color=colour,
        marker="o" if len(points) < 40 else None,
        markersize=3,
        linestyle="--" if dash else "-",
        alpha=0.6 if dash else 1,
        label=label,
    )


def finish(axes: Any, title: str, across: str = "epoch", *, whole: bool = True) -> None:
    """The title, the grid and the ink that all panels share; `whole`: the axis across counts."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.grid(alpha=0.35, color=GREY, linewidth=0.5)
    axes.set_axisbelow(True)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ink(axes)


def ink(axes: Any) -> None:
    """Draw everything that is not data in the page's ink."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8)
    for part in (axes.title, axes.xaxis.label, axes.yaxis.label):
        part.set_color(INK)


def _for_page(svg: str, alt: str) -> str:
    """Without what only a file needs; with the page's ink; hidden from a screen reader where another panel speaks."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend|QuadMesh)[\w.]*"', "", svg)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href").replace(INK, "currentColor")
    role = f'role="img" aria-label="{alt}"' if alt else 'aria-hidden="true"'
    return re.sub(r'<svg (?=.*?viewBox)[^>]*?(viewBox="[^"]*")[^>]*>', rf"<svg {role} \1>", svg, count=1).strip()
