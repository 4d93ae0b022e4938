"""The format `onnx`: float32, float16, and int8 by the quantisation of ONNX Runtime."""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.errors import UserError
from imgcls.portable.description import ONNX, read_description
from imgcls.portable.engines import OnnxEngine
from imgcls.portable.formats import Converter, Source
from imgcls.portable.graph_preprocessing import add_preprocessing
from imgcls.system.extras import check_installed

INPUT, SCORES, NOVELTY = "images", "scores", "novelty"
WEIGHTED = ("Conv", "Gemm", "MatMul")
"""The kinds of nodes that can be kept in float32: nearly all of the weights and of the time are theirs."""
BATCH_SIZE = 8


class OnnxFormat:
    """`model.onnx`, as it is written at the end of a run, in any precision."""

    precisions = ("fp32", "fp16", "int8")
    takes_pixels = True

    def check(self) -> None:
        check_installed(["onnx", "onnxscript", "onnxruntime"], "onnx", "format=onnx")

    def converter(self, source: Source, precision: str) -> Converter:
        makers: dict[str, Callable[[Source], Converter]] = {"fp32": _Float32, "fp16": _Float16, "int8": _Int8}
        plain = makers[precision](source)
        return _WithPreprocessing(plain, source) if source.in_graph else plain

    def engine(self, folder: Path, threads: int | None = None) -> OnnxEngine:
        check_installed(["onnxruntime"], "serve", "A model of format=onnx")
        return OnnxEngine(folder / ONNX, threads)


class _WithPreprocessing:
    """Writes what another converter writes, with the preprocessing as its first nodes."""

    def __init__(self, plain: Converter, source: Source) -> None:
        self._plain, self.layers = plain, plain.layers
        self._preprocessing, self._description = source.preprocessing, read_description(source.folder)

    def write(self, folder: Path, keep: Sequence[str] = ()) -> None:
        import onnx

        self._plain.write(folder, keep)
        model = onnx.load(folder / ONNX)
        names, thresholds = self._description["class_names"], self._description["thresholds"]
        add_preprocessing(model, self._preprocessing, names, multilabel=thresholds is not None)
        onnx.save(model, folder / ONNX)


class _Float32:
    """Copies `model.onnx`, or writes it where the model has none."""

    layers: Sequence[str] = ()

    def __init__(self, source: Source) -> None:
        self._source = source

    def write(self, folder: Path, keep: Sequence[str] = ()) -> None:
        write_float32(self._source, folder / ONNX)


def write_float32(source: Source, target: Path) -> None:
    """Write the float32 graph of `source`: that beside its weights, or else a new one."""
    if (source.folder / ONNX).is_file():
        shutil.copyfile(source.folder / ONNX, target)
        return
    from imgcls.portable.exporter import export_onnx

    exported = source.exported
    if not export_onnx(exported.network, source.preprocessing, target, float(exported.temperature), exported.novelty):
        raise UserError("format=onnx: no ONNX file can be written of this network. Use format=torch.")


class _Float16:
    """Weights and computation in float16; input and outputs stay float32."""

    layers: Sequence[str] = ()

    def __init__(self, source: Source) -> None:
        self._source = source

    def write(self, folder: Path, keep: Sequence[str] = ()) -> None:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        write_float32(self._source, folder / ONNX)
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")  # weights below the smallest number of float16 become zero
            model = convert_float_to_float16(onnx.load(folder / ONNX), keep_io_types=True)
        onnx.save(model, folder / ONNX)


class _Int8:
    """Weights as int8 with a scale per channel, activations as uint8 with the range that training images have.

    Quantising and dequantising nodes (QDQ) are put around the layers, which every runtime reads.
    """

    def __init__(self, source: Source) -> None:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory(prefix="imgcls-") as folder, quiet():
            plain, ready = Path(folder) / "plain.onnx", Path(folder) / "ready.onnx"
            write_float32(source, plain)
            quant_pre_process(plain, ready, skip_symbolic_shape=True)  # merges batch norms into convolutions
            model = onnx.load(ready)
            _name_nodes(model)
            onnx.save(model, ready)
            self._ranges = _ranges(ready, Path(folder), source.images)
        self._model: Any = model
        self._float = _only_for_novelty(model.graph)
        layers = [node.name for node in model.graph.node if node.op_type in WEIGHTED]
        self.layers: Sequence[str] = tuple(name for name in layers if name not in self._float)

    def write(self, folder: Path, keep: Sequence[str] = ()) -> None:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry

        with quiet():
            quantizer = QDQQuantizer(
                copy.deepcopy(self._model),
                True,  # a scale per channel
                False,
                QuantType.QInt8,
                QuantType.QUInt8,
                self._ranges,
                [],
                [*self._float, *keep],
                list(QDQRegistry),
                {},
            )
            quantizer.quantize_model()
            quantizer.model.save_model_to_file(str(folder / ONNX))


def _ranges(file: Path, folder: Path, images: np.ndarray) -> Any:
    """The smallest and the largest value of every tensor of the graph in `file` for `images`."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator
    from onnxruntime.quantization.registry import QDQRegistry

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._starts = iter(range(0, len(images), BATCH_SIZE))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self._starts, None)
            return None if start is None else {INPUT: images[start : start + BATCH_SIZE]}

    calibrator = create_calibrator(
        file,
        list(QDQRegistry),
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )
    calibrator.collect_data(Reader())
    return calibrator.compute_data()


def _name_nodes(model: Any) -> None:
    """Give every node a name of its own, by which it can be left out."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        taken.add(node.name)


def _only_for_novelty(graph: Any) -> list[str]:
    """The nodes on which the novelty depends, but no score: distances of features, for which int8 is too coarse."""
    makers = {output: node for node in graph.node for output in node.output}

    def before(name: str) -> set[str]:
        found: set[str] = set()
        left = [name]
        while left:
            node = makers.get(left.pop())
            if node is not None and node.name not in found:
                found.add(node.name)
                left.extend(node.input)
        return found

    return sorted(before(NOVELTY) - before(SCORES))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the messages of the converters on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
