"""The seam for formats of a portable model: who writes one, and what computes its answers.

`register_format` adds one; see docs/extending.md. Reading a model imports no torch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from imgcls.errors import UserError, nearest
from imgcls.system.extras import import_plugins

if TYPE_CHECKING:
    from imgcls.images.preprocessing import Preprocessing
    from imgcls.portable.exported import Exported

PRECISIONS = ("fp32", "fp16", "int8")


class Engine(Protocol):
    """Computes logits; may be called from any thread, but only from one at a time."""

    @property
    def name(self) -> str:
        """The engine and its device, for people."""

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """float32 (N, C) logits, divided by the model's temperature, for float32 (N, 3, S, S) normalised images.

        Of a model that knows unknown images float32 (N, C + 1), with their novelty in the last column.
        """


@dataclass(frozen=True)
class Source:
    """What a format is written from.

    Attributes:
        folder: of the portable model.
        exported: its network on the CPU, in evaluation mode: normalised float32 (N, 3, S, S) images to the outputs.
        preprocessing: gives the size of the images.
        images: normalised float32 (N, 3, S, S), training images, on which int8 measures the ranges of values.
        in_graph: whether the files do the preprocessing too, and take decoded images of any size.
    """

    folder: Path
    exported: Exported
    preprocessing: Preprocessing
    images: np.ndarray
    in_graph: bool = False


class Converter(Protocol):
    """Writes one model in one precision, any number of times."""

    layers: Sequence[str]
    """The names of the layers that can be kept in float32 where they do harm; empty where none can."""

    def write(self, folder: Path, keep: Sequence[str] = ()) -> None:
        """Write the files of the format into the existing `folder`, with the layers `keep` in float32."""


class Format(Protocol):
    """A format in which a model is deployed.

    One whose files can do the preprocessing has `takes_pixels = True`, and its engine `image_outputs`. One whose files
    can run code when they are read has `runs_code = True`.
    """

    precisions: Sequence[str]
    """Of `PRECISIONS`, those that it has."""

    def check(self) -> None:
        """Raise UserError, in one line, if a package that writing needs is missing."""

    def converter(self, source: Source, precision: str) -> Converter:
        """What writes `source` in this `precision`."""

    def engine(self, folder: Path, threads: int | None = None) -> Engine:
        """What computes the outputs of the model in `folder` on the CPU. Raises UserError if a package is missing."""


F = TypeVar("F", bound=Callable[[], Format])


def _built_in(place: str) -> Callable[[], Format]:
    """What makes the format of imgcls at `place`, whose module is imported only then."""

    def make() -> Format:
        module, _, name = place.partition(":")
        form: Format = getattr(importlib.import_module(module), name)()
        return form

    return make


FORMATS: dict[str, Callable[[], Format]] = {
    "onnx": _built_in("imgcls.portable.onnx_format:OnnxFormat"),
    "openvino": _built_in("imgcls.portable.openvino_format:OpenVinoFormat"),
    "torch": _built_in("imgcls.portable.torch_format:TorchFormat"),
}
"""What makes each format, by the name that `format=` and `model.json` use."""


def register_format(name: str) -> Callable[[F], F]:
    """A decorator for a class, or a function without arguments, that makes the format `name`."""

    def register(make: F) -> F:
        FORMATS[name] = make
        return make

    return register


def find_format(name: str) -> Format:
    """The format `name`. Those of other modules are found once these are named: IMGCLS_PLUGINS=mine,other.

    Raises UserError if there is none.
    """
    if name not in FORMATS:
        import_plugins()
    if name not in FORMATS:
        known = sorted({*FORMATS, "portable", "sagemaker", "all"})
        raise UserError(
            f"format={name}: {nearest(name, known)} A format of your own: IMGCLS_PLUGINS=MODULE, see docs/extending.md."
        )
    return FORMATS[name]()


def open_export(folder: Path, description: Mapping[str, Any], threads: int | None = None) -> Engine:
    """The engine of the exported `folder` with this `model.json`.

    Raises UserError where reading it can run code in it, unless the environment says IMGCLS_TRUST=1.
    """
    name = str(description["export"]["format"])
    form = find_format(name)
    if getattr(form, "runs_code", False) and os.environ.get("IMGCLS_TRUST") != "1":
        raise UserError(
            f"{folder}: reading format={name} can run code that is in it. If you wrote it yourself, put IMGCLS_TRUST=1 "
            "before the command."
        )
    return form.engine(folder, threads)
