"""The preprocessing as the first nodes of an ONNX graph, which then takes decoded images of any size.

Resampling is two products with matrices that the graph computes from the size of the image, as Pillow computes its
coefficients (`Resample.c`): the same on every runtime, whatever it knows of antialiasing. Pillow rounds between the
two, and its version 13 swaps them for some sizes, so that single values differ by a grey level.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from imgcls.errors import UserError
from imgcls.images.channels import STEP, TOP, spread
from imgcls.images.preprocessing import Preprocessing
from imgcls.portable.onnx_layers import Layers

PIXELS, PROBABILITIES = "pixels", "probabilities"
PREFIX = "preprocessing/"
METADATA = "imgcls.preprocessing"
"""Key of the preprocessing, as JSON, in the metadata of the graph."""
CLASS_NAMES = "imgcls.class_names"
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""The filters, and how far each reaches, in pixels of the smaller image. Those of `nearest` and `box` jump, so that
rounding errors would decide which pixel counts."""
ZERO, ONE = np.float64(0), np.float64(1)


def add_preprocessing(
    model: Any, preprocessing: Preprocessing, class_names: Sequence[str], *, multilabel: bool = False
) -> None:
    """Let `model`, an onnx.ModelProto, take pixels and return probabilities.

    Its input `images` is replaced by `pixels`: uint8, with 16 bits uint16, (N, H, W, C), N decoded, upright images of
    the same, any, size. `probabilities`, float32 (N, K), becomes the first output; those that it had follow. Names of
    the classes and the preprocessing are in the metadata. Raises UserError for a filter that is not in SUPPORT.
    """
    from onnx import GraphProto, TensorProto, helper

    core = model.graph
    if preprocessing.interpolation not in SUPPORT:
        known = " and ".join(SUPPORT)
        raise UserError(f"preprocessing=graph has {known} alone; the model has {preprocessing.interpolation}.")
    [images], scores = core.input, core.output[0].name
    front = _Front(GraphProto(), PREFIX, preprocessing)
    front.write(images.name)
    back = Layers(GraphProto(), f"{PREFIX}back/")
    if multilabel:
        back.add("Sigmoid", scores, output=PROBABILITIES)
    else:
        back.add("Softmax", scores, output=PROBABILITIES, axis=1)
    nodes = [*front.graph.node, *core.node, *back.graph.node]
    del core.node[:]
    core.node.extend(nodes)
    core.initializer.extend(front.graph.initializer)
    batch = images.type.tensor_type.shape.dim[0].dim_param or "batch"
    shape, kind = [batch, "height", "width", preprocessing.channels], TensorProto.UINT8
    kind = kind if preprocessing.bits == 8 else TensorProto.UINT16
    core.input[0].CopyFrom(helper.make_tensor_value_info(PIXELS, kind, shape))
    outputs = list(core.output)
    del core.output[:]
    probabilities = helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, [batch, len(class_names)])
    core.output.extend([probabilities, *outputs])
    about = {METADATA: preprocessing.as_dict(), CLASS_NAMES: list(class_names)}
    helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()})


def denormalise(metadata: Mapping[str, str]) -> Callable[[np.ndarray], np.ndarray] | None:
    """From float32 (N, C, H, W) normalised images to the pixels that a graph with this metadata takes.

    None if its input is normalised.
    """
    if METADATA not in metadata:
        return None
    preprocessing = Preprocessing.from_dict(json.loads(metadata[METADATA]))
    (offset, scale), step = preprocessing.offset_and_scale(), STEP if preprocessing.bits == 16 else 1

    def pixels(images: np.ndarray) -> np.ndarray:
        values = (np.moveaxis(images, 1, -1) / scale + offset) * step
        return np.clip(np.rint(values), 0, TOP[preprocessing.bits]).astype(preprocessing.depth.type)

    return pixels


class _Axis:
    """What of an axis of the image becomes what of the model's input: names of scalars in the graph.

    Attributes:
        size: int64, of the image, px.
        start, end: float64, of the part that is resampled, px.
        inner: int64, how many pixels it becomes.
        offset: int64, at which of the input's pixels these begin.
        count: pixels of the input.
    """

    def __init__(self, size: str, count: int) -> None:
        self.size, self.count = size, count
        self.start: str | np.float64 = ZERO
        self.end: str | np.float64 = ZERO
        self.inner: str | np.int64 = np.int64(count)
        self.offset: str | np.int64 = np.int64(0)


class _Front(Layers):
    def __init__(self, graph: Any, prefix: str, preprocessing: Preprocessing) -> None:
        super().__init__(graph, prefix)
        self._preprocessing = preprocessing
        self._is_deep = preprocessing.bits == 16

    def write(self, output: str) -> None:
        """From PIXELS to the normalised images `output`."""
        preprocessing = self._preprocessing
        size = self.add("Shape", PIXELS)
        axes = [
            _Axis(self.add("Gather", size, np.int64(place), axis=0), count)
            for place, count in zip((1, 2), preprocessing.shape, strict=True)
        ]
        self._fit(axes)
        pixels = self._used(axes) if preprocessing.fit == "crop" else PIXELS
        planes = self._cast(self.add("Transpose", pixels, perm=[0, 3, 1, 2]), np.float32)
        rows, columns = (self._weights(axis) for axis in axes)
        # in the order of Pillow, which rounds in between
        wide = self._rounded(self.add("MatMul", planes, self.add("Transpose", columns, perm=[1, 0])))
        small = self._rounded(self.add("MatMul", rows, wide), last=True)
        if preprocessing.fit == "pad":
            small = self._framed(small, axes)
        if self._is_deep:
            small = self.add("Div", small, np.float32(STEP))
        offset, scale = (values[:, None, None] for values in preprocessing.offset_and_scale())
        self.add("Mul", self.add("Sub", small, offset), scale, output=output)

    def _cast(self, value: str, to: type[np.generic]) -> str:
        from onnx import helper

        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))

    def _double(self, value: str) -> str:
        return self._cast(value, np.float64)

    def _whole(self, value: str) -> str:
        return self._cast(self.add("Round", value), np.int64)  # to even, as Python

    def _fit(self, axes: Sequence[_Axis]) -> None:
        """What `Preprocessing.pixels` computes before it resamples, operation by operation."""
        for axis in axes:
            axis.end = self._double(axis.size)
        kind = self._preprocessing.fit
        if kind == "squash":
            return
        if kind == "pad":
            self._pad(axes)
            return
        self._crop(axes) if isinstance(self._preprocessing.image_size, int) else self._crop_to_shape(axes)
        # an image of the size of the input is taken as it is
        same = self.add("And", *(self.add("Equal", axis.size, np.int64(axis.count)) for axis in axes))
        for axis in axes:
            axis.start = self.add("Where", same, ZERO, axis.start)
            axis.end = self.add("Where", same, self._double(axis.size), axis.end)

    def _pad(self, axes: Sequence[_Axis]) -> None:
        scale = self.add("Min", *(self.add("Div", np.float64(axis.count), axis.end) for axis in axes))
        for axis in axes:
            inner = self.add("Max", self._whole(self.add("Mul", axis.end, scale)), np.int64(1))
            axis.inner = self.add("Min", inner, np.int64(axis.count))
            axis.offset = self.add("Div", self.add("Sub", np.int64(axis.count), axis.inner), np.int64(2))

    def _crop(self, axes: Sequence[_Axis]) -> None:
        short = self.add("Min", *(axis.size for axis in axes))
        for axis in axes:
            scaled = self.add("Div", self.add("Mul", axis.size, np.int64(self._preprocessing.resize)), short)
            margin = self._double(self.add("Sub", scaled, np.int64(axis.count)))
            first = self._double(self._whole(self.add("Div", margin, np.float64(2))))
            factor = self.add("Div", axis.end, self._double(scaled))
            axis.start = self.add("Mul", first, factor)
            last = self.add("Mul", self.add("Add", first, np.float64(axis.count)), factor)
            axis.end = self.add("Min", last, axis.end)

    def _crop_to_shape(self, axes: Sequence[_Axis]) -> None:
        covered = self.add("Max", *(self.add("Div", np.float64(axis.count), axis.end) for axis in axes))
        smallest = np.float64(min(self._preprocessing.shape))
        scale = self.add("Div", self.add("Mul", covered, np.float64(self._preprocessing.resize)), smallest)
        for axis in axes:
            width = self.add("Min", self.add("Div", np.float64(axis.count), scale), axis.end)
            axis.start = self.add("Div", self.add("Sub", axis.end, width), np.float64(2))
            axis.end = self.add("Add", axis.start, width)

    def _used(self, axes: Sequence[_Axis]) -> str:
        """The pixels that the crop needs: all others would be multiplied by zero."""
        edges = []
        for axis in axes:
            reach = self._reach(axis)
            first = self.add("Max", self._cast(self.add("Sub", axis.start, reach), np.int64), np.int64(0))
            last = self.add("Min", self._cast(self.add("Add", axis.end, reach), np.int64), axis.size)
            shift = self._double(first)
            # Pillow's box is in float32
            axis.start, axis.end = (self.add("Sub", self._single(edge), shift) for edge in (axis.start, axis.end))
            axis.size = self.add("Sub", last, first)
            edges.append([self.add("Unsqueeze", edge, np.array([0])) for edge in (first, last)])
        starts, ends = (self.add("Concat", *(edge[end] for edge in edges), axis=0) for end in (0, 1))
        return self.add("Slice", PIXELS, starts, ends, np.array([1, 2]))

    def _single(self, value: str | np.float64) -> str:
        return self._double(self.add("Cast", value, to=1))

    def _scale(self, axis: _Axis) -> str:
        """Pixels of the image for each of the input, float64."""
        inner = self._double(axis.inner) if isinstance(axis.inner, str) else np.float64(axis.inner)
        return self.add("Div", self.add("Sub", axis.end, axis.start), inner)

    def _reach(self, axis: _Axis) -> str:
        """How far beyond the part pixels count, px, and some more."""
        support = np.float64(SUPPORT[self._preprocessing.interpolation])
        return self.add("Add", self.add("Mul", self.add("Max", self._scale(axis), ONE), support), np.float64(2))

    def _weights(self, axis: _Axis) -> str:
        """float32 (count, size): the share of each pixel of the image in each of the input."""
        scale = self._scale(axis)
        places: str | np.ndarray = np.arange(axis.count, dtype=np.float64)[:, None] + 0.5
        if isinstance(axis.offset, str):
            places = self.add("Sub", places, self._double(axis.offset))
        centres = self.add("Add", self.add("Mul", places, scale), axis.start)
        pixels = self._double(self.add("Range", np.int64(0), axis.size, np.int64(1)))
        middles = self.add("Sub", self.add("Add", pixels, np.float64(0.5)), centres)
        distances = self.add("Div", middles, self.add("Max", scale, ONE))
        weights = self._filter(self._cast(distances, np.float32))
        return self.add("Div", weights, self.add("ReduceSum", weights, np.array([1]), keepdims=1))

    def _filter(self, distance: str) -> str:
        """The filter of Pillow at float32 distances from its centre."""
        distance = self.add("Abs", distance)
        if self._preprocessing.interpolation == "bilinear":
            return self.add("Max", self.add("Sub", np.float32(1), distance), np.float32(0))
        near, far = (self._polynomial(distance, *part) for part in ((1.5, -2.5, 0, 1), (-0.5, 2.5, -4, 2)))
        outer = self.add("Where", self.add("Less", distance, np.float32(2)), far, np.float32(0))
        return self.add("Where", self.add("Less", distance, np.float32(1)), near, outer)

    def _polynomial(self, x: str, first: float, *coefficients: float) -> str:
        value = self.add("Mul", x, np.float32(first))
        for coefficient in coefficients[:-1]:
            value = self.add("Mul", self.add("Add", value, np.float32(coefficient)), x)
        return self.add("Add", value, np.float32(coefficients[-1]))

    def _rounded(self, values: str, last: bool = False) -> str:
        """As Pillow, to whole numbers; images of 16 bits only at the end, and then as numpy."""
        if self._is_deep and not last:
            return values
        half_up = values if self._is_deep else self.add("Add", values, np.float32(0.5))
        whole = self.add("Round" if self._is_deep else "Floor", half_up)
        return self.add("Clip", whole, np.float32(0), np.float32(TOP[self._preprocessing.bits]))

    def _framed(self, planes: str, axes: Sequence[_Axis]) -> str:
        """With the colour of the border around the image."""
        inside = []
        for axis, shape in zip(axes, ((-1, 1), (1, -1)), strict=True):
            place = self.add("Sub", np.arange(axis.count).reshape(shape), axis.offset)
            positive = self.add("GreaterOrEqual", place, np.int64(0))
            inside.append(self.add("And", positive, self.add("Less", place, axis.inner)))
        preprocessing = self._preprocessing
        colour = spread(preprocessing.pad_colour, 1) if preprocessing.channels != 3 else preprocessing.pad_colour
        border = (np.rint(colour) * (STEP if self._is_deep else 1)).astype(np.float32)
        border = np.broadcast_to(border, preprocessing.channels)[:, None, None]
        return self.add("Where", self.add("And", *inside), planes, border)
