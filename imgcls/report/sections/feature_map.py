"""A map of the test images: those that the network takes for similar are close to each other."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import matplotlib
import numpy as np

from imgcls.report.blocks import Blocks, Figure, Text
from imgcls.report.figures import GREY, INK, SERIES, Chart, finish, plain_text, shortened
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section

NAMED_CLASSES = 12  # in the legend
MIN_IMAGES = 10


def _make(run: RunData) -> Blocks:
    file = run.folder / "report_data" / "test_features.npz"
    rows = {row["file"]: row for row in run.predictions}
    if not file.is_file() or run.multilabel or not rows:
        return []
    with np.load(file, allow_pickle=False) as stored:
        known = np.array([name in rows for name in stored["files"].tolist()], dtype=bool)
        files, components, share = stored["files"][known].tolist(), stored["components"][known], stored["share"]
    if len(files) < MIN_IMAGES:
        return []
    labels = [rows[name]["label"] for name in files]
    wrong = np.array([rows[name]["correct"] != "1" for name in files])
    places, how = _places(components, share)
    names = [name for name in run.classes if name in set(labels)]
    chart = Chart(
        alt=f"Map of the features of {len(files)} test images",
        panels=(lambda axes: _draw(axes, places, np.array([names.index(label) for label in labels]), wrong, names),),
        size=(5.0, 3.6),
    )
    errors = int(wrong.sum())
    crosses = "the cross is the error" if errors == 1 else f"crosses are the {errors} errors"
    text = (
        f"The features of {len(files)} test images, {how}: images that the network takes for similar are close to "
        f"each other. The colour is the true class; {crosses}. A cross amid another class is often a wrong label; "
        "classes that overlap need more images, or larger ones."
    )
    return [Figure.of(chart, name="features"), Text(text)]


def _places(components: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, str]:
    """Two coordinates of each image, float (N, 2), and how they were found."""
    if importlib.util.find_spec("umap") is not None:
        umap = importlib.import_module("umap")
        neighbours = min(15, len(components) - 1)
        return umap.UMAP(random_state=0, n_neighbors=neighbours).fit_transform(components), "in a map of UMAP"
    padded = np.pad(components, ((0, 0), (0, max(0, 2 - components.shape[1]))))
    return padded[:, :2], f"along the two directions with {share[:2].sum():.0%} of their variance (PCA)"


def _draw(axes: Any, places: np.ndarray, labels: np.ndarray, wrong: np.ndarray, names: list[str]) -> None:
    spectrum = matplotlib.colormaps["turbo"](np.linspace(0.1, 0.9, len(names)))  # its ends are black on a dark page
    colours = SERIES[:-1] if len(names) < len(SERIES) else spectrum
    for place, name in enumerate(names):
        for errors, style in ((False, {"marker": "o", "s": 12, "linewidths": 0}), (True, {"marker": "x", "s": 30})):
            chosen = places[(labels == place) & (wrong == errors)]
            label = None if errors else plain_text(shortened(name, 22))
            axes.scatter(chosen[:, 0], chosen[:, 1], color=[colours[place]], alpha=0.85, label=label, **style)
    if len(names) <= NAMED_CLASSES:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    finish(axes, "")
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_color(GREY)


SECTION = Section("Feature map", _make)
