"""Which of the numbers of the images in use have drifted from the reference, since which image, and the accuracy.

Most are watched for more images than usual in the tails of the reference. For the features a classifier is trained to
tell the images from those of the reference, and tested on later ones (a classifier two-sample test, Lopez-Paz and Oquab
2017).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from imgcls.monitoring.evidence import MONTH, RISK, Event, bound_of_count, change_evidence, tail, wealth
from imgcls.monitoring.measures import Measures
from imgcls.monitoring.reference import Reference, fit_line, vectors
from imgcls.portable.model import softmax

FIRST, PART = 250, 1000  # images that a classifier is trained on: those of the first part, and of the later ones
SIDES = {"confidence": (1,), "novelty": (-1,)} | dict.fromkeys(
    ("brightness", "contrast", "sharpness", "detail"), (1, -1)
)
"""Which tails are watched: 1 the low one, -1 the high one."""
ROUNDS = 100  # of expectation maximisation
TAILS = (0.01, 0.05, 0.2, 0.5)  # shares of the reference


@dataclass(frozen=True)
class Watched:
    """Something that may drift.

    Attributes:
        name: of the number.
        evidence: float64 (T,), the decimal logarithm of the evidence after each of T images over that for an alarm.
        before: its mean on the reference.
        now: its mean in use; of images since the alarm, if there is one.
    """

    name: str
    evidence: np.ndarray
    before: float
    now: float

    @property
    def alarm(self) -> int | None:
        """The number of images, at least 1, after which the drift is certain; None: it is not."""
        above = np.flatnonzero(self.evidence >= 0)
        return int(above[0]) + 1 if len(above) else None


@dataclass(frozen=True)
class Accuracy:
    """An estimate, with bounds for chance: of the images in use and of the calibration, in 95 % of the cases."""

    value: float
    low: float
    high: float


def watch(reference: Reference, stream: Measures) -> list[Watched]:
    """What is watched of T images in their order, whose features are projected.

    The probability of any false alarm within MONTH images that are like the reference is at most RISK: half of it is
    for the bounds from the reference, half for the bets against them, and each number has an equal part.
    """
    signs = {name: sides for name, sides in SIDES.items() if not np.isnan(getattr(reference.images, name)).any()}
    total = max(MONTH, len(stream))
    risk = RISK / 2 / (len(signs) + len(reference.names) + 2)
    bound = np.log(total / risk)
    found = []

    def add(name: str, logarithm: np.ndarray, before: float, now: np.ndarray) -> None:
        evidence = logarithm / np.log(10)
        alarm = np.flatnonzero(evidence >= 0)
        since = now[alarm[0] :] if len(alarm) else now
        found.append(Watched(name, evidence, before, float(since.mean())))

    for name, sides in signs.items():
        before, now = getattr(reference.images, name), getattr(stream, name)
        add(name, change_evidence(tails(before, now, sides, risk), len(stream)) - bound, float(before.mean()), now)
    damage = [reference.damage(vectors(images)) for images in (odd(reference.images), stream)]
    for name, before, now in zip(reference.names, *(values.T for values in damage), strict=True):
        add(name, change_evidence(tails(before, now, (-1,), risk), len(stream)) - bound, float(before.mean()), now)
    classes = change_evidence(class_events(reference.images, stream, risk), len(stream)) - bound
    add("classes", classes, np.nan, np.full(len(stream), np.nan))
    found.append(_watch_features(reference, stream, risk, total))
    return found


def tails(before: np.ndarray, now: np.ndarray, sides: Sequence[int], risk: float) -> Iterator[Event]:
    """More numbers than usual are among the lowest, or with the side -1 among the highest."""
    for side in sides:
        for share in TAILS:
            value, bound = tail(side * before, share, risk / len(TAILS) / len(sides))
            yield side * now < value, bound


def class_events(before: Measures, now: Measures, risk: float) -> Iterator[Event]:
    """A class is predicted more often than usual."""
    count = int(max(before.predicted.max(), now.predicted.max())) + 1
    counts = np.bincount(before.predicted, minlength=count)
    for index in np.unique(now.predicted).tolist():
        yield now.predicted == index, bound_of_count(int(counts[index]), len(before), risk / count)


def _watch_features(reference: Reference, stream: Measures, risk: float, total: int) -> Watched:
    """A classifier is trained to tell each part of the images from the reference, and tested on the next part."""
    parts = total / PART + 2
    evidence, means = np.full(len(stream), -np.log10(parts / risk)), (np.nan, np.nan)
    for past, part in _parts(len(stream)):
        rows = [vectors(images) for images in (even(reference.images), stream[past])]
        line = fit_line(np.concatenate(rows), np.repeat([False, True], [len(part_rows) for part_rows in rows]))
        before, now = line(vectors(odd(reference.images))), line(vectors(stream[part]))
        found = wealth(tails(before, now, (-1,), risk / parts), len(now))
        evidence[part] = (found - np.log(parts / risk)) / np.log(10)
        means = float(before.mean()), float(now.mean())
    return Watched("features", evidence, *means)


def estimate_accuracy(reference: Reference, stream: Measures) -> Accuracy:
    """The share of the images of which the model is right, without their labels."""
    rows = vectors(stream)
    if_kind = 1 / (1 + np.exp(-reference.correctness(rows)))
    chances = (mix_kinds(softmax(reference.kinds(rows))) * if_kind).sum(axis=1)
    value, known = float(chances.mean()), reference.correct.mean()
    variance = (chances * (1 - chances)).mean() / len(chances) + known * (1 - known) / len(reference.correct)
    reach = 1.96 * float(np.sqrt(variance))
    return Accuracy(value, max(0.0, value - reach), min(1.0, value + reach))


def mix_kinds(probabilities: np.ndarray) -> np.ndarray:
    """The probability of each kind for each image, float64 (N, K), given those for an equal mix of kinds.

    The mix of the images in use is estimated by expectation maximisation (Saerens, Latinne and Decaestecker 2002).
    """
    probabilities = np.maximum(probabilities, 1e-12)
    mixed = probabilities
    for _ in range(ROUNDS):
        share = mixed.mean(axis=0)
        mixed = probabilities * share
        mixed /= mixed.sum(axis=1, keepdims=True)
    return mixed


def even(images: Measures) -> Measures:
    """Those of the reference that something is learned from."""
    return images[::2]


def odd(images: Measures) -> Measures:
    """Those of the reference that nothing has been learned from."""
    return images[1::2]


def _parts(count: int) -> Iterator[tuple[slice, slice]]:
    """Parts of a stream of `count` images: those that something is learned from, and those that it is tested on."""
    past, start = 0, FIRST
    while start < count:
        end = start + min(start, PART)
        yield slice(past, start), slice(start, min(end, count))
        past, start = max(0, end - PART), end
