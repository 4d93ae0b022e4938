"""The figures of a report, drawn with matplotlib and without its global state.

On the page each panel is a separate SVG, so that panels stack on a phone, stay sharp and take the page's colours in
dark mode; as a file a figure is one PNG with all of its panels.
"""

from __future__ import annotations

import html
import io
import math
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
from matplotlib.transforms import Bbox
from PIL import Image

from imgcls.models.ranking import Curve
from imgcls.portable.calibration import BINS
from imgcls.runs.confusion import Confusion
from imgcls.system.positions import spread_positions

BLUE, ORANGE, GREEN, GREY, INK = "#2a78c8", "#d9772b", "#3a9a5b", "#8a8f98", "#1d2329"
COLOURS = {"training": BLUE, "validation": ORANGE, "": GREY}  # of a single run
SERIES = (BLUE, ORANGE, GREEN, "#9a5fc0", "#c24b5a", "#5b8f94", "#a07c3b", GREY)
DPI = 130
PADDING = 0.04 * DPI  # px, around a panel
PANELS_IN_ROW = 3  # of a file: of more, the texts are not read on the width of a page
MAX_CLASSES = 30  # of a confusion matrix with readable labels
MAX_POINTS = 400  # of a curve
INTERVALS = 5  # at most, between the numbers of an axis: their texts take most of a figure's time
LOG_SCALE_RATIO = 10  # a maximum above this times the median makes the axis logarithmic
PARTS = {"data_wait": "waiting for data", "forward": "forward", "backward": "backward", "optimiser": "optimiser"}


@dataclass(frozen=True)
class Steps:
    """Loss and learning rate of every optimiser step of a run, float64 (steps,)."""

    loss: np.ndarray
    rate: np.ndarray


@dataclass(frozen=True)
class Chart:
    """Panels, each drawn by a function of its axes, and their alternative text."""

    alt: str
    panels: tuple[Callable[[Any], None], ...]
    size: tuple[float, float] = (4.3, 2.9)
    """Width and height of a panel, inches."""

    def as_png(self) -> bytes:
        """All panels in rows of up to `PANELS_IN_ROW`, as a PNG file."""
        pixels = [np.asarray(canvas.buffer_rgba())[..., :3] for canvas in self._canvases]
        rows = math.ceil(len(pixels) / PANELS_IN_ROW)
        columns = math.ceil(len(pixels) / rows)
        pixels += [np.full_like(pixels[0], 255)] * (rows * columns - len(pixels))
        lines = [np.concatenate(pixels[start : start + columns], axis=1) for start in range(0, len(pixels), columns)]
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate(lines)).save(buffer, "png", dpi=(DPI, DPI))
        return buffer.getvalue()

    def as_svgs(self) -> list[str]:
        """Each panel as an <svg> element in the page's text colour."""
        svgs = []
        for number, figure in enumerate(canvas.figure for canvas in self._canvases):
            for patch in (figure.patch, *(axes.patch for axes in figure.axes[:1])):
                patch.set_visible(False)
            text = io.StringIO()
            with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{self.alt}{number}"}):
                FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
            title = str(figure.axes[0].get_title() or figure.axes[0].get_label())
            svgs.append(_for_page(text.getvalue(), self.alt if number == 0 else title))
        return svgs

    @cached_property
    def _canvases(self) -> list[FigureCanvasAgg]:
        """Each panel, drawn and laid out: by far the slowest part, so done once for the file and the page."""
        canvases = []
        for panel in self.panels:
            canvases.append(_canvas(self.size, panel))
            canvases[-1].draw()
        return canvases


def learning_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]], steps: Steps | None = None, objective: str = ""
) -> Chart:
    """Loss, accuracy and learning rate over the epochs of each run; for a single run, training against validation.

    Args:
        runs: the rows of `metrics.csv` of each run.
        steps: of a single run: its learning rate and training loss are also drawn step by step.
        objective: how the training loss differs from the plain cross entropy of the validation loss, such as
            "label smoothing 0.1". The two are then not comparable, and each has a panel of its own.
    """
    single = len(runs) == 1

    def panel(title: str, columns: Mapping[str, str]) -> Callable[[Any], None]:
        """The `columns` of each history, by their labels."""

        def draw(axes: Any) -> None:
            rows = [row for history in runs.values() for row in history]
            values = np.array([row[column] for row in rows for column in columns.values() if column in row])
            finite = values[np.isfinite(values)]
            positive = "loss" in title and len(finite) and finite.min() > 0
            if positive and finite.max() > LOG_SCALE_RATIO * np.median(finite):
                axes.set_yscale("log")  # one bad epoch would flatten the others
            for number, (run, history) in enumerate(runs.items()):
                for label, column in columns.items():
                    points = [(row["epoch"], row[column]) for row in history if column in row]
                    if points:
                        colour = COLOURS[label] if single else SERIES[number % len(SERIES)]
                        dashed = not single and label == "training" and len(columns) > 1
                        name = label if single else plain_text(run)
                        _line(axes, points, colour, name if label and not dashed else None, dashed)
            finish(axes, title)
            if len(values) > len(finite) == 0:
                axes.set(xticks=[], yticks=[])
                axes.text(0.5, 0.5, "not finite", color=INK, ha="center", va="center", transform=axes.transAxes)
            if (len(columns) > 1 or not single) and axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, labelcolor=INK, fontsize=8)

        return draw

    metrics = {name.rpartition("/")[2] for history in runs.values() for row in history for name in row}
    columns = {name: {"training": f"train/{name}", "validation": f"val/{name}"} for name in ("loss", "accuracy")}
    if "map" in metrics:  # of several labels; the accuracy of single labels is high where most are absent
        columns["accuracy"] = {"validation": "val/map"}
        columns["mean average precision"] = columns.pop("accuracy")
        metrics.add("mean average precision")
    columns = {name: columns[name] for name in columns if name in metrics}
    if objective and "loss" in columns:
        apart = columns.pop("loss").items()
        titles = (f"training loss, {objective}", "validation loss, cross entropy")
        columns = {title: {label: column} for title, (label, column) in zip(titles, apart, strict=True)} | columns
    panels = [panel(title, columns[title]) for title in columns]
    panels.append(panel("learning rate after the epoch", {"": "lr"}))
    if steps is not None and len(steps.loss) > 1:
        panels[-1:] = [_over_steps(steps.loss, "training loss per step", BLUE)]
        panels += [_over_steps(steps.rate, "learning rate")] if len(steps.rate) else []
    return Chart("Loss, accuracy and learning rate over the training", tuple(panels))


def learning_rate_finder(rates: np.ndarray, losses: np.ndarray, chosen: float) -> Chart:
    """The mean loss of short trainings by learning rate, both float (S,), with the `chosen` rate marked."""
    rates, losses = rates[np.isfinite(losses)], losses[np.isfinite(losses)]

    def draw(axes: Any) -> None:
        axes.plot(rates, losses, color=BLUE, linewidth=1.2)
        axes.axvline(chosen, color=ORANGE, linewidth=1, linestyle="--")
        axes.plot(
            [chosen], [np.interp(chosen, rates, losses)], "o", color=ORANGE, markersize=6, label=f"chosen: {chosen:.2g}"
        )
        axes.set_xscale("log")
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        finish(axes, "loss", "learning rate", whole=False)

    return Chart(f"Loss by learning rate; the chosen rate is {chosen:.2g}", (draw,))


def _over_steps(values: np.ndarray, title: str, colour: str = GREY) -> Callable[[Any], None]:
    """Each of up to 400 values; of more values, the mean and the range of each of 400 stretches."""
    values = np.where(np.isfinite(values), values, np.nan)

    def draw(axes: Any) -> None:
        parts = np.array_split(values, min(len(values), MAX_POINTS))
        steps = np.cumsum([len(part) for part in parts])
        axes.plot(steps, [part.mean() for part in parts], color=colour, linewidth=1.2)
        if len(values) > MAX_POINTS:
            low, high = ([limit(part) for part in parts] for limit in (np.min, np.max))
            axes.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
        finish(axes, title, "step")

    return draw


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Chart:
    """The confusion matrix: rows are true classes, columns predicted ones, coloured by their share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    short = [plain_text(shortened(name, 22)) for name in names]

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
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    side = 2.2 + 0.32 * len(names)
    return Chart("Confusion matrix: rows are true classes, columns predicted classes", (draw,), (side, side))


def confusion_figure(confusion: Confusion) -> Figure:
    """The confusion matrix as a figure for a notebook; of many classes only the `MAX_CLASSES` with the most errors."""
    wrong, count = confusion.errors(), len(confusion.names)
    errors = sum(np.bincount(part, wrong.images, count) for part in (wrong.true, wrong.predicted))
    shown = np.sort(np.argsort(-errors, kind="stable")[:MAX_CLASSES])
    chart = confusion_matrix(confusion.dense(shown), [confusion.names[place] for place in shown])
    figure = Figure(figsize=chart.size, layout="constrained", dpi=DPI)  # also in the size that a notebook gives it
    FigureCanvasAgg(figure)
    chart.panels[0](figure.add_subplot())
    return figure


def confusion_pixels(counts: np.ndarray) -> bytes:
    """The confusion matrix of many classes, a pixel per cell, as a PNG file; darker is a larger share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = matplotlib.colormaps["Blues"](np.sqrt(shares))[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.rint(colours * 255).astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def reliability(confidence: np.ndarray, correct: np.ndarray) -> Chart:
    """Accuracy by confidence, and the distribution of confidence; a calibrated model is on the diagonal."""
    finite = np.isfinite(confidence)  # the confidence of a diverged network is NaN
    confidence, correct = confidence[finite], correct[finite]
    bins = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0
    accuracy, mean = (
        np.bincount(bins, weights=values, minlength=BINS)[filled] / counts[filled] for values in (correct, confidence)
    )

    def diagram(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        axes.plot(mean, accuracy, color=BLUE, marker="o", markersize=4)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel="accuracy")
        finish(axes, "calibration", "confidence", whole=False)

    def amount(axes: Any) -> None:
        axes.bar((np.arange(BINS) + 0.5) / BINS, counts, width=0.9 / BINS, color=BLUE)
        axes.set(xlim=(0, 1), ylabel="images")
        finish(axes, "distribution of confidence", "confidence", whole=False)

    return Chart("Accuracy by confidence, and the distribution of confidence", (diagram, amount))


def class_curves(curves: Mapping[str, Curve]) -> Chart:
    """The ROC and the precision-recall curve of each class."""
    colours = matplotlib.colormaps["tab20" if len(curves) > 10 else "tab10"]

    def panel(title: str, across: str, up: str, start: tuple[float, float]) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            for number, (name, found) in enumerate(curves.items()):
                places = spread_positions(len(found.recall), MAX_POINTS // 4)
                horizontal, vertical = (
                    np.concatenate([[first], getattr(found, part)[places]])
                    for first, part in zip(start, (across, up), strict=True)
                )
                axes.plot(
                    horizontal,
                    vertical,
                    color=colours(number % colours.N),
                    linewidth=1.2,
                    label=plain_text(shortened(name, 16)),
                )
            axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.04), ylabel=up.replace("_", " "))
            finish(axes, title, across.replace("_", " "), whole=False)

        return draw

    def legend(axes: Any) -> None:
        for number, name in enumerate(curves):
            label = plain_text(shortened(name, 26))
            axes.plot([], [], color=colours(number % colours.N), linewidth=2, label=label)
        axes.legend(loc="center left", frameon=False, labelcolor=INK, fontsize=8, ncols=1 + (len(curves) > 12))
        axes.set_axis_off()
        axes.set_label("legend")

    panels = (
        panel("ROC", "false_positive_rate", "recall", (0.0, 0.0)),
        panel("precision-recall", "recall", "precision", (0.0, 1.0)),
        legend,
    )
    return Chart(f"ROC and precision-recall curves of {len(curves)} classes; their areas are in the table", panels)


def risk_coverage(coverage: np.ndarray, risk: np.ndarray) -> Chart:
    """The share of errors among the surest answers, by how many of them are accepted; both float (N,)."""
    places = spread_positions(len(risk), MAX_POINTS)

    def draw(axes: Any) -> None:
        right = 100 * (1 - risk[places])
        axes.plot(100 * coverage[places], right, color=BLUE, linewidth=1.5, clip_on=False)
        axes.set(xlim=(0, 101), ylim=(min(99, right.min()), 100), ylabel="right, %")
        finish(axes, "accuracy of the surest answers", "answers accepted, %", whole=False)

    return Chart("Accuracy of the surest answers, by the share of answers that is accepted", (draw,))


def precision_recall(
    name: str, recall: np.ndarray, precision: np.ndarray, point: tuple[float, float] | None, average: float
) -> Chart:
    """The curve of the label `name`, float (K,) each, and the (recall, precision) of its threshold."""

    def draw(axes: Any) -> None:
        axes.step([0, *recall], [precision[0], *precision], where="pre", color=BLUE)
        if point is not None:
            axes.plot(*point, color=ORANGE, marker="o", markersize=6)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.05), ylabel="precision")
        finish(axes, f"{plain_text(shortened(name, 26))}, AP {average:.0%}", "recall", whole=False)

    return Chart(f"Precision by recall of {name}", (draw,), size=(3.2, 2.4))


def profile_shares(profile: Mapping[str, Any]) -> Chart:
    """Where the time of the run and of its steps went, in %, and how busy the machine was."""

    def bar_chart(title: str, shares: Mapping[str, float]) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            names = list(shares)[::-1]
            values = [100 * shares[name] for name in names]
            bars = axes.barh([PARTS.get(name, name) for name in names], values, color=BLUE)
            axes.bar_label(bars, [f"{value:.0f}%" for value in values], padding=3, color=INK, fontsize=8)
            axes.set_xlim(0, max([*values, 1]) * 1.2)
            finish(axes, title, "% of the time", whole=False)

        return draw

    phases = {name: phase["share"] for name, phase in profile.get("summary", {}).items()}
    parts = {name: part["share"] for name, part in profile.get("steps", {}).get("parts", {}).items()}
    panels = [bar_chart(title, shares) for title, shares in (("the run", phases), ("a step", parts)) if shares]
    timeline = profile.get("timeline", [])

    def machine(axes: Any) -> None:
        labels = {"cpu": "CPU", "memory": "memory", "gpu": "GPU", "gpu_memory": "GPU memory"}
        for (name, label), colour in zip(labels.items(), SERIES, strict=False):
            points = [(moment["seconds"], moment[name]) for moment in timeline if name in moment]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1, label=label)
        axes.set(ylim=(0, 102), ylabel="%")
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        finish(axes, "the machine", "seconds", whole=False)

    if len(timeline) > 1:
        panels.append(machine)
    return Chart("Where the time of the run and of a step went, and how busy the machine was", tuple(panels))


def plain_text(text: str) -> str:
    """`text` such that matplotlib draws its dollar signs, instead of reading formulas between them."""
    return text.replace("$", r"\$")


def shortened(text: str, length: int) -> str:
    """`text`, or its beginning, of up to `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _canvas(size: tuple[float, float], panel: Callable[[Any], None]) -> FigureCanvasAgg:
    """A figure of this `size`, inches, which the axes of `panel` fill with the texts around them.

    As with matplotlib's constrained layout, but measured once and not at each of two passes before each drawing.
    """
    figure = Figure(figsize=size, dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    panel(axes := figure.add_subplot())
    place = axes.get_position(original=True).transformed(figure.transFigure)
    content = axes.get_tightbbox(for_layout_only=True) or place  # a title may be wider than its axes
    texts = content.get_points() - place.get_points()  # how far they reach beyond the axes' corners
    room = Bbox(figure.bbox.padded(-PADDING).get_points() - texts)
    if min(room.size) > 0:
        axes.set_position(room.transformed(figure.transFigure.inverted()))
    return canvas


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
    """Draw the title, the grid and the colours that all panels share; `whole`: the x axis has whole numbers."""
    axes.set_title(title, fontsize=10, y=1.0)  # without a place, matplotlib searches for one, a tenth of the time
    axes.set_xlabel(across)
    axes.grid(alpha=0.35, color=GREY, linewidth=0.5)
    axes.set_axisbelow(True)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(locator := axis.get_major_locator(), MaxNLocator):
            locator.set_params(nbins=INTERVALS)
    ink(axes)


def ink(axes: Any) -> None:
    """Draw everything that is not data in the page's text colour."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(which="both", colors=INK, labelsize=8)
    for part in (axes.title, axes.xaxis.label, axes.yaxis.label):
        part.set_color(INK)


def _for_page(svg: str, alt: str) -> str:
    """`svg` without what only a file needs, in the page's text colour, with the title `alt`; without, hidden."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend|QuadMesh)[\w.]*"', "", svg)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href").replace(INK, "currentColor")
    title = html.escape(alt)
    role = f'role="img" aria-label="{title}"' if alt else 'aria-hidden="true"'

    def start(found: re.Match[str]) -> str:
        return f"<svg {role} {found[1]}>" + (f"<title>{title}</title>" if alt else "")

    return re.sub(r'<svg (?=.*?viewBox)[^>]*?(viewBox="[^"]*")[^>]*>', start, svg, count=1).strip()
