"""Writes a portable model in another format, with a certificate, and refuses one that answers worse than it may.

Where int8 loses too much, the layers that do the most harm stay in float32: as few as bring it back within the
tolerance.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imgcls.errors import UserError
from imgcls.images.channels import Planes
from imgcls.portable.certificate import (
    TOLERANCE_POINTS,
    Answers,
    Batches,
    Certificate,
    Speed,
    answers,
    certify,
    measure_speed,
    size_mb,
)
from imgcls.portable.description import WEIGHTS, temperature_of
from imgcls.portable.engines import Engine, TorchEngine, read_novelty
from imgcls.portable.exported import Exported
from imgcls.portable.exporter import write_description
from imgcls.portable.formats import Converter, Format, Source, find_format
from imgcls.portable.model import PortableModel
from imgcls.portable.parity import Parity, compare
from imgcls.system.bars import with_bar
from imgcls.system.files import atomic_folder, sha256_of

log = logging.getLogger(__name__)

PROBED = 32
"""Images on which the harm of each layer is measured."""
UNMEASURED = Speed(0.0, 0.0)
SAME_CLASS = 0.99
"""Of the images, at least, with preprocessing in the graph: single pixels of it differ by a grey level."""
NAMED = 3
"""Layers that a message names."""


@dataclass(frozen=True)
class Conversion:
    """An exported model.

    Attributes:
        format, precision: what it is.
        certificate: its answers, speed and size beside the float32 network.
        layers: number of layers that could be kept in float32.
        kept: the names of those that are.
        lost_at_first: percentage points that the accuracy lost before any layer was kept.
        graph: the answers with the preprocessing in the graph beside those with that of Python; None: it is not there.
    """

    format: str
    precision: str
    certificate: Certificate
    layers: int = 0
    kept: tuple[str, ...] = ()
    lost_at_first: float = 0.0
    graph: Parity | None = None

    def __str__(self) -> str:
        text = str(self.certificate)
        if self.graph is not None:
            text = f"{text}. Preprocessing in the graph against Pillow's: {self.graph}"
        if not self.kept:
            return text
        return (
            f"{text}. With all {self.layers} layers in {self.precision} it lost {self.lost_at_first:.2f} "
            f"points: {_names(self.kept)} stayed in float32"
        )


class Conversions:
    """Converts one model to several formats, each compared with the same answers of the float32 network.

    Args:
        folder: of the portable model.
        model: the same, loaded with torch on the CPU.
        images: normalised float32 (N, 3, S, S), training images, for the ranges of int8.
        batches: validation images.
        pictures: decoded images of any size, on which preprocessing in the graph is compared with that of Python.
    """

    def __init__(
        self,
        folder: Path,
        model: PortableModel,
        images: np.ndarray,
        batches: Batches,
        pictures: Callable[[], Iterable[Image.Image | Planes]] = tuple,
    ) -> None:
        self._model, self._batches, self._pictures = model, batches, pictures
        temperature, novelty = temperature_of(model.description), read_novelty(folder, model.description)
        self._source = Source(folder, Exported(model.network, temperature, novelty).eval(), model.preprocessing, images)
        self._before = TorchEngine(model.network, temperature, novelty)
        self._answers = self._answers_of(self._before)
        self._speed: Speed | None = None
        first, _ = next(iter(batches()))
        self._probe = first[:PROBED]

    def convert(self, name: str, precision: str, target: Path, *, in_graph: bool = False) -> Conversion:
        """Write the format `name` in `precision` into `target`, replaced whole.

        With `in_graph` the files do the preprocessing too, and take decoded images of any size.

        Raises UserError if the format does not have the precision, a package is missing, or the accuracy on the
        validation images falls by more than TOLERANCE_POINTS allows; what was in `target` then stays.
        """
        form = find_format(name)
        if precision not in form.precisions:
            raise UserError(f"format={name} has precision={', '.join(form.precisions)}, not {precision}.")
        if in_graph and not getattr(form, "takes_pixels", False):
            raise UserError(f"format={name} has no preprocessing=graph; format=onnx has.")
        form.check()
        converter = form.converter(replace(self._source, in_graph=in_graph), precision)
        tolerance = TOLERANCE_POINTS[precision]
        with atomic_folder(target) as partial:

            def points_lost(keep: Sequence[str]) -> float:
                converter.write(partial, keep)
                now = self._answers_of(form.engine(partial))
                return certify(self._answers, now, (UNMEASURED, UNMEASURED), (0.0, 0.0)).points_lost

            lost = points_lost(())
            kept: tuple[str, ...] = ()
            if lost > tolerance + 1e-9 and converter.layers:
                log.info(
                    "%s %s: %.2f points of accuracy are lost, %g may be. Looking for the layers that do the harm.",
                    name,
                    precision,
                    lost,
                    tolerance,
                )
                order = self._by_harm(form, converter)
                kept = fewest(order, lambda keep: points_lost(keep) <= tolerance + 1e-9)
                converter.write(partial, kept)
            done = self._certified(form, partial, name, precision)
            done = replace(done, layers=len(converter.layers), kept=kept, lost_at_first=lost)
            if done.certificate.points_lost > tolerance + 1e-9:
                raise UserError(
                    f"format={name} precision={precision} loses {done.certificate.points_lost:.2f} points of accuracy "
                    f"on {done.certificate.images} validation images ({tolerance:g} are allowed): nothing was written."
                )
            if in_graph:
                done = replace(done, graph=self._compare_preprocessing(form.engine(partial)))
            self._describe(done, partial)
            return done

    def _certified(self, form: Format, folder: Path, name: str, precision: str) -> Conversion:
        engine = form.engine(folder)
        now = self._answers_of(engine)
        preprocessing = self._source.preprocessing
        shape = preprocessing.channels, *preprocessing.shape
        self._speed = self._speed or measure_speed(self._before, shape)
        sizes = (self._source.folder / WEIGHTS).stat().st_size / 1e6, size_mb(folder)
        return Conversion(
            name, precision, certify(self._answers, now, (self._speed, measure_speed(engine, shape)), sizes)
        )

    def _compare_preprocessing(self, engine: Any) -> Parity:
        """The answers of `engine` to decoded images, beside those to what Python makes of them.

        Raises UserError if more than one of a hundred has another class.
        """
        preprocessing, classes = self._source.preprocessing, len(self._model.class_names)
        outputs = [
            (
                engine.outputs(preprocessing.normalise(preprocessing.pixels(picture)[None])),
                engine.image_outputs(np.asarray(picture, preprocessing.depth.type)[None]),
            )
            for picture in self._pictures()
        ]
        probabilities = [
            self._model.activation(np.concatenate(part)[:, :classes]) if part else np.empty((0, classes), np.float32)
            for part in ([pair[0] for pair in outputs], [pair[1] for pair in outputs])
        ]
        parity = compare(probabilities[0], probabilities[1])
        if parity.agreement < SAME_CLASS:
            raise UserError(f"preprocessing=graph answers differently: {parity}. Nothing was written.")
        return parity

    def _describe(self, done: Conversion, folder: Path) -> None:
        export = {
            "format": done.format,
            "precision": done.precision,
            "layers": done.layers,
            "float32_layers": list(done.kept),
            "certificate": done.certificate.as_dict(),
            "weights": sha256_of(self._source.folder / WEIGHTS),
            **({"graph": asdict(done.graph)} if done.graph is not None else {}),
        }
        write_description({**self._model.description, "parity": {}, "export": export}, folder)

    def _answers_of(self, engine: Engine) -> Answers:
        model = self._model
        return answers(engine, self._batches, model.activation, len(model.class_names), model.thresholds)

    def _by_harm(self, form: Format, converter: Converter) -> list[str]:
        """The layers, first those that alone change the logits most."""
        expected = self._before.outputs(self._probe)[:, : len(self._model.class_names)]
        harm: dict[str, float] = {}
        with tempfile.TemporaryDirectory(prefix="imgcls-") as folder:
            for layer in with_bar(converter.layers, len(converter.layers), "Measuring the harm of layers"):
                converter.write(Path(folder), [other for other in converter.layers if other != layer])
                found = form.engine(Path(folder)).outputs(self._probe)[:, : expected.shape[1]]
                harm[layer] = float(np.square(found - expected).mean())
        return sorted(harm, key=lambda layer: -harm[layer])


def fewest(order: Sequence[str], is_enough: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """The shortest beginning of `order` that is found to be enough, by doubling and halving; all if none is.

    >>> fewest("abcdefgh", lambda keep: len(keep) >= 3)
    ('a', 'b', 'c')
    """
    low, high = 0, 1
    while high < len(order) and not is_enough(order[:high]):
        low, high = high, 2 * high
    high = min(high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(order[:middle]) else (middle, high)
    return tuple(order[:high])


def _names(layers: Sequence[str]) -> str:
    more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
    return f"{', '.join(layers[:NAMED])}{more}"
