"""The format `openvino`, for processors, GPUs and NPUs of Intel: float32, float16 weights, and int8."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.errors import UserError, first_line
from imgcls.portable.description import ONNX
from imgcls.portable.engines import GraphEngine
from imgcls.portable.formats import Converter, Source
from imgcls.portable.graph_preprocessing import METADATA as PREPROCESSING
from imgcls.portable.onnx_format import OnnxFormat, quiet
from imgcls.system.extras import check_installed
from imgcls.system.machine import own_cores

FILE = "model.xml"
METADATA, PRECISION = "imgcls", "precision"
"""Under which the file has the metadata of the ONNX graph."""


class OpenVinoFormat:
    """`model.xml` and `model.bin`, converted from the ONNX graph of the same precision."""

    precisions = ("fp32", "fp16", "int8")
    takes_pixels = True

    def check(self) -> None:
        check_installed(["openvino", "onnx", "onnxscript", "onnxruntime"], "openvino", "format=openvino")

    def converter(self, source: Source, precision: str) -> Converter:
        return _Writer(source, precision)

    def engine(self, folder: Path, threads: int | None = None) -> OpenVinoEngine:
        check_installed(["openvino"], "openvino", "A model of format=openvino")
        return OpenVinoEngine(folder / FILE, threads)


class _Writer:
    def __init__(self, source: Source, precision: str) -> None:
        # OpenVINO turns the graph's int8 into its own; float16 is one of its storage, which it computes with as it can
        self._plain = OnnxFormat().converter(source, "int8" if precision == "int8" else "fp32")
        self._precision, self.layers = precision, self._plain.layers

    def write(self, folder: Path, keep: Sequence[str] = ()) -> None:
        import onnx
        import openvino

        with tempfile.TemporaryDirectory(prefix="imgcls-") as graph, quiet():
            self._plain.write(Path(graph), keep)
            model = openvino.convert_model(Path(graph) / ONNX)
            for item in onnx.load(Path(graph) / ONNX, load_external_data=False).metadata_props:
                model.set_rt_info(item.value, [METADATA, item.key])
            model.set_rt_info(self._precision, [METADATA, PRECISION])
            openvino.save_model(model, folder / FILE, compress_to_fp16=self._precision == "fp16")


class OpenVinoEngine(GraphEngine):
    """OpenVINO on the CPU; `threads` defaults to all cores that this process may use."""

    def __init__(self, file: Path, threads: int | None = None) -> None:
        import openvino

        threads = threads or own_cores()
        # not pinned: a core that another process keeps busy would hold up all others
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = openvino.Core().read_model(file)
            metadata = {key: _metadata(model, key) for key in (PRECISION, PREPROCESSING) if _metadata(model, key)}
            # by default it computes float32 in bfloat16 where it can, which is too coarse for pixels and their places
            if metadata.get(PRECISION) != "fp16" or PREPROCESSING in metadata:
                options["INFERENCE_PRECISION_HINT"] = "f32"
            self._compiled = openvino.Core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise UserError(f"{file} cannot be read: {first_line(error)}") from error
        super().__init__(metadata, [name for output in self._compiled.outputs for name in output.names])
        self.name = f"OpenVINO on {threads} threads"

    def _run(self, name: str, values: np.ndarray) -> list[np.ndarray]:
        found = self._compiled({name: values})
        return [found[output] for output in self._names]


def _metadata(model: Any, key: str) -> str:
    """What the model says under `key`; empty: nothing."""
    place = [METADATA, key]
    return str(model.get_rt_info(place).value) if model.has_rt_info(place) else ""
