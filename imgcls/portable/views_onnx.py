"""views=where_unsure in an ONNX graph: the choice of the images whose other views are computed.

torch's exporter needs to know that a batch has an image, which the unsure ones of a batch need not have. It therefore
writes a graph with two more inputs, the rows of the unsure images and these images, and one more output, how unsure
each image is. Here the inputs are computed from the output instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

IMAGES, ROWS, AGAIN, UNSURE = "images", "unsure_rows", "unsure_images", "unsure"


def choose_images(graph: Any) -> None:
    """Compute the inputs ROWS and AGAIN of an ONNX graph (`onnxscript.ir`) from its output UNSURE; remove all three."""
    from onnxscript import ir

    unsure = graph.outputs.pop()
    images, rows, again = list(graph.inputs)[:3]  # weights may follow
    values = {"zero": np.float32(0), "axis": np.array([0])}
    constants = [ir.node("Constant", [], {"value": ir.tensor(np.asarray(value))}) for value in values.values()]
    zero, axis = (constant.outputs[0] for constant in constants)
    chosen = ir.node("Greater", [unsure, zero])
    places = ir.node("NonZero", chosen.outputs)  # int64 (1, n)
    found = ir.node("Squeeze", [places.outputs[0], axis])
    gathered = ir.node("Gather", [images, found.outputs[0]], {"axis": 0})
    graph.extend([*constants, chosen, places, found, gathered])
    for old, new in ((rows, found), (again, gathered)):
        new.outputs[0].name = old.name
        ir.convenience.replace_all_uses_with(old, new.outputs[0])
        graph.inputs.remove(old)
    graph.sort()
