"""The figures of a report, drawn with matplotlib and without its global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2a6fbb", "#d9772b", "#8a8f98"
MOST_CLASSES = 30  # of a confusion matrix that can still be read
BINS = 15  # of the reliability diagram


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Loss, accuracy and learning rate over the epochs, training against validation."""
    figure, (loss, accuracy, rate) = _panels(3)
    epochs = [row["epoch"] + 1 for row in history]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for part, colour in (("train", BLUE), ("val", ORANGE)):
            points = [
                (epoch, row[f"{part}/{name}"])
                for epoch, row in zip(epochs, history, strict=True)
                if f"{part}/{name}" in row
            ]
            if points:
                label = "training" if part == "train" else "validation"
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=label)
        axes.set_title(name)
        axes.legend(frameon=False)
    rate.plot(epochs, [row["lr"] for row in history], color=GREY, marker="o", markersize=3)
    rate.set_title("learning rate after the epoch")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """What was taken for what: rows are what the pictures show, columns what was seen, as shares of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 3.2 + 0.3 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("seen")
    axes.set_ylabel("shown")
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class")
    return figure


def reliability(confidence: np.ndarray, correct: np.ndarray) -> Figure:
    """How often the model is right when it is so sure: on the diagonal, its confidence can be believed."""
    figure, (axes, amount) = _panels(2)
    place = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    filled = counts > 0
    hits = np.bincount(place, weights=correct, minlength=BINS)[filled] / counts[filled]
    sure = np.bincount(place, weights=confidence, minlength=BINS)[filled] / counts[filled]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.plot(sure, hits, color=BLUE, marker="o", markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="share that is right", title="calibration")
    amount.bar((np.arange(BINS) + 0.5) / BINS, counts, width=0.9 / BINS, color=BLUE)
    amount.set(xlim=(0, 1), xlabel="confidence", ylabel="pictures", title="how sure it is")
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    import io

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _panels(count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(3.7 * count, 3.1), layout="constrained", dpi=130)
    panels = figure.subplots(1, count)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, panels
