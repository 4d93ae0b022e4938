"""What an exported model is worth: its answers beside those of the float32 network, its speed and its size."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgcls.errors import UserError
from imgcls.portable.description import CARD, DESCRIPTION, WEIGHTS, read_description
from imgcls.portable.parity import compare, describe_difference
from imgcls.system.files import sha256_of
from imgcls.system.machine import available_cores, processor_name

if TYPE_CHECKING:
    from imgcls.portable.engines import Engine

TOLERANCE_POINTS = {"fp32": 0.0, "fp16": 0.1, "int8": 0.5}
"""How much accuracy each precision may lose on the validation images, in percentage points."""
CERTIFICATE = "certificate.json"
UNCERTIFIED = (CERTIFICATE, CARD, "reference.npz")  # what does not answer
BATCH_SIZE = 16
SECONDS = 1.5
"""For which each speed is measured, after one call that warms up."""

Batches = Callable[[], Iterable[tuple[np.ndarray, np.ndarray | None]]]
"""Each call goes through the same images: normalised float32 (n, 3, S, S), and their labels, (n,), (n, C) or None."""


@dataclass(frozen=True)
class Answers:
    """Probabilities, float32 (N, C), of images with `labels`: int (N,), (N, C) of several labels each, or unknown."""

    probabilities: np.ndarray
    labels: np.ndarray | None
    thresholds: tuple[float, ...] | None = None

    @property
    def accuracy(self) -> float | None:
        """The share of the images classified correctly; with several labels, of the decisions about each label."""
        if self.labels is None:
            return None
        if self.thresholds is not None:
            return float(((self.probabilities >= np.array(self.thresholds)) == (self.labels > 0.5)).mean())
        return float((self.probabilities.argmax(axis=1) == self.labels).mean())


@dataclass(frozen=True)
class Speed:
    """Milliseconds for a single image, median, and images per second in batches of BATCH_SIZE."""

    latency_ms: float
    images_per_second: float


@dataclass(frozen=True)
class Certificate:
    """An exported model beside the float32 network of torch, on this machine.

    Attributes:
        images: number of images.
        same_class: share of them with the same most likely class.
        difference: the largest difference between two probabilities.
        accuracy_before, accuracy: of the network, and of the exported model; None for images without labels.
        latency_ms_before, latency_ms, images_per_second_before, images_per_second: see `Speed`.
        megabytes_before, megabytes: of the weights as float32, and of the files of the format.
        machine: processor and number of threads.
    """

    images: int
    same_class: float
    difference: float
    accuracy_before: float | None
    accuracy: float | None
    latency_ms_before: float
    latency_ms: float
    images_per_second_before: float
    images_per_second: float
    megabytes_before: float
    megabytes: float
    machine: str

    @property
    def points_lost(self) -> float:
        """How much lower the accuracy is, in percentage points; without labels, how much lower it may be at most."""
        if self.accuracy_before is None or self.accuracy is None:
            return 100 * (1 - self.same_class)
        return 100 * (self.accuracy_before - self.accuracy)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        accuracy = ""
        if self.accuracy_before is not None and self.accuracy is not None:
            accuracy = f"; accuracy {self.accuracy_before:.2%} before, {self.accuracy:.2%} now"
        return (
            f"the same class for {self.same_class:.2%} of {self.images:,} images, "
            f"{describe_difference(self.difference)}{accuracy}; "
            f"{self.latency_ms:.1f} ms for an image (torch: {self.latency_ms_before:.1f}), "
            f"{self.images_per_second:.0f} images/s (torch: {self.images_per_second_before:.0f}), "
            f"{self.megabytes:.1f} MB"
        )


def answers(
    engine: Engine,
    batches: Batches,
    activation: Callable[[np.ndarray], np.ndarray],
    classes: int,
    thresholds: tuple[float, ...] | None = None,
) -> Answers:
    """The answers of `engine` to all images of `batches`."""
    found, labels = [], []
    for images, truth in batches():
        found.append(activation(engine.outputs(images)[:, :classes]))
        labels.append(truth)
    known = [part for part in labels if part is not None]
    return Answers(np.concatenate(found), np.concatenate(known) if len(known) == len(found) else None, thresholds)


def measure_speed(engine: Engine, shape: tuple[int, int, int]) -> Speed:
    """The speed of `engine` for images of `shape` (channels, height, width)."""
    image, batch = (np.zeros((count, *shape), np.float32) for count in (1, BATCH_SIZE))
    return Speed(1000 * _median_seconds(engine, image), BATCH_SIZE / _median_seconds(engine, batch))


def _median_seconds(engine: Engine, images: np.ndarray) -> float:
    engine.outputs(images)
    times: list[float] = []
    began = time.perf_counter()
    while not times or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        engine.outputs(images)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def certify(before: Answers, now: Answers, speeds: tuple[Speed, Speed], megabytes: tuple[float, float]) -> Certificate:
    """The certificate of answers, speed and size of the float32 network and of the exported model."""
    parity = compare(before.probabilities, now.probabilities)
    return Certificate(
        images=len(before.probabilities),
        same_class=parity.agreement,
        difference=parity.difference,
        accuracy_before=before.accuracy,
        accuracy=now.accuracy,
        latency_ms_before=speeds[0].latency_ms,
        latency_ms=speeds[1].latency_ms,
        images_per_second_before=speeds[0].images_per_second,
        images_per_second=speeds[1].images_per_second,
        megabytes_before=megabytes[0],
        megabytes=megabytes[1],
        machine=f"{processor_name()}, {available_cores()} threads",
    )


def size_mb(folder: Path) -> float:
    """Megabytes of the files of a format in `folder`."""
    names = {CARD, DESCRIPTION}
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file() and file.name not in names) / 1e6


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that a certificate of the portable model in `folder` is about, by name."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name not in UNCERTIFIED]
    return {file.name: sha256_of(file) for file in files}


def check_certificate(folder: Path) -> None:
    """Raise UserError if the model in `folder` has a certificate of `python -m imgcls.verify` that it does not hold.

    It must have passed, and the files must be those that were verified.
    """
    file = folder / CERTIFICATE
    if not file.is_file():
        return
    advice = "Verify the model again: python -m imgcls.verify"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        passed, verified = content["passed"] is True, dict(content["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no certificate. {advice}") from error
    if not passed:
        raise UserError(f"{folder}: its certificate says that it answers worse than it may. {advice}")
    if changed := [name for name, digest in file_digests(folder).items() if verified.get(name) != digest]:
        raise UserError(f"{folder}: {', '.join(changed)} changed after the certificate was written. {advice}")


def faster_export(folder: Path) -> Path | None:
    """The int8 export of the portable model in `folder` of a run, if it answers faster than float32 on this machine.

    Its certificate, of the same weights on this kind of processor, must say so, and that it loses no more accuracy than
    int8 may. None: there is no such export.
    """
    export = folder.resolve().parent / "exports" / "onnx-int8"
    if folder.resolve().name != "model" or not (export / DESCRIPTION).is_file():
        return None
    about = read_description(export).get("export", {})
    found = about.get("certificate", {})
    before, now = found.get("accuracy_before"), found.get("accuracy")
    lost = 100 * (before - now) if before is not None and now is not None else 100 * (1 - found.get("same_class", 0))
    allowed = (
        lost <= TOLERANCE_POINTS["int8"] + 1e-9
        and found.get("images_per_second", 0) > found.get("images_per_second_before", 0)
        and found.get("latency_ms", 1) < found.get("latency_ms_before", 0)
        and str(found.get("machine", "")).startswith(f"{processor_name()},")
    )
    return export if allowed and about.get("weights") == sha256_of(folder / WEIGHTS) else None
