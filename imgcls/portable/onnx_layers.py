"""Adds nodes and constants to an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np


class Layers:
    """Writes nodes to the end of `graph`, an onnx.GraphProto; the names of all that it adds begin with `prefix`."""

    def __init__(self, graph: Any, prefix: str) -> None:
        self.graph, self.prefix, self.count = graph, prefix, 0

    def _name(self) -> str:
        self.count += 1
        return f"{self.prefix}{self.count}"

    def _constant(self, values: np.ndarray | np.generic) -> str:
        """The name of a new constant."""
        from onnx import numpy_helper

        name = self._name()
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def add(
        self, kind: str, *inputs: str | np.ndarray | np.generic, output: str | None = None, **attributes: Any
    ) -> str:
        """The name of the first output of a new node; its inputs are names of values, or constants."""
        from onnx import helper

        names = [item if isinstance(item, str) else self._constant(item) for item in inputs]
        name = self._name()
        outputs = [output or name, *([f"{name}/places"] if kind == "TopK" else [])]
        self.graph.node.append(helper.make_node(kind, names, outputs, name=name, **attributes))
        return output or name
