"""What `optim.lr=auto` found."""

from __future__ import annotations

import numpy as np

from imgcls.report import figures
from imgcls.report.blocks import Blocks, Figure, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section


def _make(run: RunData) -> Blocks:
    found = run.json("learning_rate.json")
    if not {"lr", "loss", "suggestion"} <= found.keys():
        return []
    chosen = found["suggestion"]
    chart = figures.learning_rate_finder(np.array(found["lr"]), np.array(found["loss"]), chosen)
    text = f"optim.lr=auto chose {chosen:.2g} from the mean, smoothed loss of short trainings with growing rates."
    return [Text(text), Figure.of(chart, name="learning_rate")]


SECTION = Section("Learning-rate finder", _make)
