"""A head that keeps features, as the last layers of an ONNX graph, where it is replaced when a class is added.

torch's exporter takes seconds for any graph. These layers are written alone, and the backbone's stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.models.memory import Memory, Neighbours, Prototypes
from imgcls.portable.onnx_layers import Layers
from imgcls.system.files import atomic_path

PREFIX = "head/"
FEATURES, SCORES = "features", "scores"
NO_IMAGE = -2.0
"""Below the cosine of any two images."""


def replace_head(source: Path, target: Path, head: Memory, temperature: float) -> bool:
    """Write the graph in `source` with `head` in place of its own to `target`; False if it has none to replace."""
    import onnx

    model = onnx.load(str(source))
    if not any(FEATURES in node.output for node in model.graph.node):
        return False
    for part in (model.graph.node, model.graph.initializer):
        kept = [item for item in part if not item.name.startswith(PREFIX)]
        del part[:]
        part.extend(kept)
    write_with_head(model, target, head, temperature)
    return True


def write_with_head(model: Any, target: Path, head: Memory, temperature: float) -> None:
    """Write `model`, an onnx.ModelProto with the value `features`, float32 (N, F), to `target` with `head` at its end.

    Its only output is then `scores`, float32 (N, C), which are divided by `temperature`.
    """
    import onnx

    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    layers = _Head(model.graph, PREFIX)
    units = layers.add("Div", FEATURES, layers.add("Max", layers.norm(FEATURES), np.float32(1e-12)))
    products = layers.products(units, list(map(_as_array, head.blocks())), len(head.rows))
    scale = head.scale.item() / temperature
    if isinstance(head, Prototypes):
        squares = _as_array(head.squares())
        doubled = layers.add("Mul", products, np.float32(2 * scale))
        layers.add("Sub", doubled, np.float32(scale) * squares, output=SCORES)
    else:
        assert isinstance(head, Neighbours)
        means = layers.nearest(products, _as_array(head.table), head.counts, head.k)
        layers.add("Mul", means, np.float32(scale), output=SCORES)
    classes = len(head.counts) if isinstance(head, Neighbours) else len(head.rows)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(SCORES, onnx.TensorProto.FLOAT, [batch, classes]))
    with atomic_path(target) as temporary:
        onnx.save(model, str(temporary))


class _Head(Layers):
    """The layers of a head that keeps features."""

    def norm(self, features: str) -> str:
        """Lengths, (N, 1)."""
        return self.add("ReduceL2", features, np.array([1]), keepdims=1)

    def products(self, units: str, blocks: Sequence[np.ndarray], rows: int) -> str:
        """Products (N, rows) with blocks of rows, in one operation each, whose shape never changes."""
        parts = [self.add("MatMul", units, block.T) for block in blocks]
        ends = [np.array([value]) for value in (0, rows, 1)]
        return self.add("Slice", self.add("Concat", *parts, axis=1), *ends)

    def nearest(self, products: str, table: np.ndarray, counts: Sequence[int], k: int) -> str:
        """The mean of the k largest products of each class, (N, C)."""
        rows, (classes, width) = sum(counts), table.shape
        exists = table < rows
        gathered = self.add("Gather", products, np.where(exists, table, 0).reshape(-1), axis=1)
        shaped = self.add("Reshape", gathered, np.array([-1, classes, width]))
        known = self.add("Where", exists, shaped, np.float32(NO_IMAGE))
        best = self.add("TopK", known, np.array([k]), axis=2)
        used = np.minimum(np.array(counts), k)
        total = ""
        for place in range(k):
            value = self.add("Gather", best, np.array(place), axis=2)
            part = self.add("Mul", value, (place < used).astype(np.float32))
            total = self.add("Add", total, part) if total else part
        mean = self.add("Div", total, np.maximum(used, 1).astype(np.float32))
        return self.add("Where", used > 0, mean, np.float32(-1))


def _as_array(values: Any) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().numpy()
    return array
