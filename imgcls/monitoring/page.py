"""`monitor.html`: what has drifted, since when, and how it looks."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.monitoring.detection import Accuracy, Watched
from imgcls.monitoring.evidence import MONTH, RISK
from imgcls.monitoring.measures import Measures
from imgcls.monitoring.reference import Reference
from imgcls.report import page
from imgcls.report.blocks import Block, Figure, Pictures, Table, Text
from imgcls.report.figures import BLUE, INK, MAX_POINTS, ORANGE, SERIES, Chart, finish
from imgcls.system.positions import spread_positions

MOST_CLASSES = 20
LOWEST = -12.0  # of the evidence that is drawn
ABOUT = (
    f"Above 0 the drift is certain: while the images are like those of validation, the probability that any line ever "
    f"gets there within {MONTH:,} images, a month of 100,000 a day, is at most {RISK:.0%}."
)


def write_page(
    output: Path,
    *,
    captured: str,
    sentence: str,
    reference: Reference,
    stream: Measures,
    watched: Sequence[Watched],
    accuracy: Accuracy,
    class_names: Sequence[str],
    unusual: Sequence[Mapping[str, str]],
) -> Path:
    """Write the page; return its path.

    Args:
        output: the file.
        captured: where the images come from.
        sentence: the result in short.
        reference: of the model.
        stream: the images in use.
        watched: what was found.
        accuracy: its estimate.
        class_names: of the model.
        unusual: the images that look least like the reference, as `Pictures` takes them.
    """
    sections: dict[str, list[Block]] = {
        "Drift": [Figure.of(_evidence(watched)), Text(ABOUT, soft=True), _table(watched)],
        "Confidence and images": [Figure.of(*_histograms(reference, stream))],
        "Predicted classes": [_classes(reference, stream, class_names)],
    }
    if unusual:
        sections["Most unusual images"] = [Pictures(unusual)]
    numbers: list[tuple[str, ...]] = [
        ("images", f"{len(stream):,}"),
        ("estimated accuracy", f"{accuracy.value:.1%}", f"{accuracy.low:.1%} to {accuracy.high:.1%}"),
        ("accuracy on validation", f"{reference.correct.mean():.1%}"),
        ("validation images", f"{len(reference.images):,}"),
    ]
    if not np.isnan(reference.images.novelty).any():
        before, now = ((images.novelty > 1).mean() for images in (reference.images, stream))
        numbers.append(("unknown images", f"{now:.1%}", f"{before:.1%} on validation"))
    return page.write_page(output, captured, sections, sentence=sentence, numbers=numbers)


def _evidence(watched: Sequence[Watched]) -> Chart:
    strongest = sorted(watched, key=lambda found: -found.evidence.max())[: len(SERIES)]

    def draw(axes: Any) -> None:
        for colour, found in zip(SERIES, strongest, strict=False):
            count = len(found.evidence)
            chosen = spread_positions(count, MAX_POINTS)
            axes.plot(
                chosen + 1, np.maximum(found.evidence[chosen], LOWEST), color=colour, label=found.name, linewidth=1
            )
        axes.axhline(0, color=INK, linewidth=1, linestyle="--")
        axes.set_ylabel("evidence, powers of ten")
        axes.legend(frameon=False, labelcolor=INK, fontsize=7, ncols=2)
        finish(axes, "evidence of drift", "image")

    return Chart("The strongest evidence of drift after each image", (draw,), size=(6.4, 3.0))


def _table(watched: Sequence[Watched]) -> Table:
    def cell(value: float) -> str:
        return "" if np.isnan(value) else f"{value:.3f}"

    rows = [
        [found.name, cell(found.before), cell(found.now), f"after {found.alarm:,} images" if found.alarm else "no"]
        for found in watched
    ]
    return Table(["number", "on validation", "in use", "drift"], rows, numeric=(1, 2))


def _histograms(reference: Reference, stream: Measures) -> list[Chart]:
    def panel(name: str) -> Chart:
        before, now = getattr(reference.images, name), getattr(stream, name)
        edges = np.histogram_bin_edges(np.concatenate([before, now]), 25)

        def draw(axes: Any) -> None:
            for values, colour, label in ((before, BLUE, "validation"), (now, ORANGE, "in use")):
                weights = np.full(len(values), 1 / len(values))
                axes.hist(values, edges, weights=weights, color=colour, histtype="step", linewidth=1.5, label=label)
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)
            axes.set_ylabel("share of the images")
            finish(axes, name, "", whole=False)

        return Chart(f"Histogram of {name}", (draw,))

    names = ["confidence", "brightness", "sharpness"]
    return [panel(name) for name in names + (["novelty"] if not np.isnan(reference.images.novelty).any() else [])]


def _classes(reference: Reference, stream: Measures, names: Sequence[str]) -> Table:
    shares = [np.bincount(part.predicted, minlength=len(names)) / len(part) for part in (reference.images, stream)]
    order = np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")[:MOST_CLASSES]
    rows = [
        [names[index], *(f"{share[index]:.1%}" for share in shares), f"{100 * (shares[1] - shares[0])[index]:+.1f}"]
        for index in order
    ]
    return Table(["predicted class", "on validation", "in use", "points"], rows, numeric=(1, 2, 3))


def as_picture(jpeg: bytes, name: str, predicted: str, note: str) -> dict[str, str]:
    """An image for `Pictures`."""
    return {
        "image": base64.b64encode(jpeg).decode(),
        "file": name,
        "label": "",
        "predicted": predicted,
        "note": note,
    }
