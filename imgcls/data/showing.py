"""Images with their labels as a figure, for a notebook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imgcls.images.channels import preview

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE_INCHES = 1.8


def label_text(names: Sequence[str], label: np.ndarray) -> str:
    """The name of a class, or the names of the labels in a row of 0 and 1."""
    if np.ndim(label) == 0:
        return names[int(label)]
    return ", ".join(names[place] for place in np.flatnonzero(label).tolist()) or "(none)"


def image_grid(images: np.ndarray, titles: Sequence[str]) -> Figure:
    """A figure of (N, S, S, 3) uint8 images in a square grid, each under its title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, math.ceil(math.sqrt(len(images))))
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(SIDE_INCHES * columns, (SIDE_INCHES + 0.25) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, title in zip(figure.axes, images, titles, strict=False):
        axes.imshow(preview(image))
        axes.set_title(title.replace("$", r"\$"), fontsize=9)
    return figure
