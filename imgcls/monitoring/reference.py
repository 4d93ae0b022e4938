"""What a model's images in use are compared with: the validation images, and copies of them that are made worse."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from imgcls.errors import UserError
from imgcls.images.channels import Planes
from imgcls.monitoring.measures import Measures, measure
from imgcls.monitoring.perturbations import PERTURBATIONS
from imgcls.portable import PortableModel
from imgcls.system.files import atomic_write_bytes

FILE = "reference.npz"
LEAST, MOST = 20, 2000  # images
COPIES = 2  # of each image and kind, their strengths in as many equal parts of the range: one left too much to chance
LEAST_STRENGTH = 0.1
CLEAN = -1
PENALTY = 0.05  # inverse of the weight decay of the regressions
COMPONENTS = 64  # principal components of the features that are compared
BATCH = 32
NEVER = -50.0  # logit
AGAIN = "While the data set of its run is there: python -m imgcls.export run=DIR reference=true"
MISSING = (
    "the model has no reference to compare with. While the data set of its run is there: "
    "python -m imgcls.export run={run} reference=true"
)


@dataclass(frozen=True)
class Line:
    """A linear function of the standardised numbers of an image, see `vectors`, or K of them.

    Attributes:
        centre: float64 (D,), subtracted.
        scale: float64 (D,), by which the difference is divided.
        weights: float64 (D,) or (D, K).
        bias: float64 () or (K,), added.
    """

    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """float64 (N,) or (N, K) for float64 (N, D) rows."""
        return np.asarray((rows - self.centre) / self.scale @ self.weights + self.bias)


@dataclass(frozen=True)
class Reference:
    """The numbers of N validation images, and what was learned from them and from their perturbed copies.

    Attributes:
        images: of the validation images, features projected to (N, K) principal components.
        correct: bool (N,), whether the model was right.
        mean: float32 (F,), of the features.
        components: float32 (F, K), by which they are projected.
        kinds: for `vectors`, K + 1 logits: of being like a validation image, and of being like each kind of copies.
        correctness: for `vectors`, K + 1 logits: of the model being right about an image, if it is of the kind.
        damage: for `vectors`, K numbers, of each kind: high where an image looks as after it. Learned from the images
            with even numbers and their copies alone.
        names: of the K kinds of copies.
    """

    images: Measures
    correct: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    kinds: Line
    correctness: Line
    damage: Line
    names: tuple[str, ...] = tuple(PERTURBATIONS)

    def project(self, images: Measures) -> Measures:
        """The same images with their features projected."""
        return replace(images, features=_project(images.features, self.mean, self.components))

    def save(self, file: Path) -> None:
        """Write it, whole or not at all."""
        arrays = {"correct": self.correct, "mean": self.mean, "components": self.components}
        arrays["names"] = np.array(self.names)
        parts: dict[str, Measures | Line] = {
            "images": self.images,
            "kinds": self.kinds,
            "correctness": self.correctness,
            "damage": self.damage,
        }
        for part, values in parts.items():
            arrays |= {f"{part}.{name}": np.asarray(value) for name, value in asdict(values).items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        atomic_write_bytes(file, buffer.getvalue())

    @classmethod
    def load(cls, file: Path) -> Reference:
        """Read what `save` wrote. Raises UserError if it is damaged."""
        try:
            with np.load(file, allow_pickle=False) as stored:

                def part(name: str, kind: type) -> dict[str, np.ndarray]:
                    return {field.name: stored[f"{name}.{field.name}"] for field in fields(kind)}

                if "names" not in stored:
                    raise UserError(f"{file} was written by an earlier imgcls. {AGAIN}")
                images, names = Measures(**part("images", Measures)), tuple(map(str, stored["names"]))
                lines = {name: Line(**part(name, Line)) for name in ("kinds", "correctness", "damage")}
                return cls(images, stored["correct"], stored["mean"], stored["components"], **lines, names=names)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{file} is damaged: {error}. {AGAIN}") from error


@dataclass(frozen=True)
class Versions:
    """What was measured of validation images and of perturbed copies of them, M in all.

    Attributes:
        images: with all of their features.
        correct: bool (M,), whether the model was right.
        numbers: int64 (M,), of the validation image.
        kinds: int64 (M,), the place of a copy's perturbation in PERTURBATIONS; CLEAN is the image itself.
    """

    images: Measures
    correct: np.ndarray
    numbers: np.ndarray
    kinds: np.ndarray


def fit_reference(
    model: PortableModel, pictures: Iterable[tuple[Image.Image | Planes, int]], seed: int = 0
) -> Reference:
    """The reference of `model` from validation images and their classes.

    Args:
        model: with torch as its engine.
        pictures: images that are open, each with the index of its class; all are kept, so give at most MOST.
        seed: of the perturbations, which images of other channels or bits than RGB do not have.

    Raises:
        UserError: there are too few images, or each can have several labels.
    """
    if model.thresholds is not None:
        raise UserError("reference=true: monitoring is for models that give each image one class.")
    return fit(measure_versions(model, pictures, seed))


def measure_versions(
    model: PortableModel, pictures: Iterable[tuple[Image.Image | Planes, int]], seed: int = 0
) -> Versions:
    """Measure the images and their copies; arguments as for `fit_reference`."""
    dice, preprocessing = np.random.default_rng(seed), model.preprocessing

    def versions() -> Iterator[tuple[np.ndarray, int, int, int]]:
        """Pixels, class, number of the image, and kind of the copy."""
        for number, (picture, label) in enumerate(pictures):
            yield preprocessing.pixels(picture), label, number, CLEAN
            if isinstance(picture, Image.Image):
                for kind, perturb in enumerate(PERTURBATIONS.values()):
                    for part in range(COPIES):
                        strength = LEAST_STRENGTH + (1 - LEAST_STRENGTH) * (part + dice.random()) / COPIES
                        worse = perturb(picture.convert("RGB"), float(strength), dice)
                        yield preprocessing.pixels(worse), label, number, kind

    measured, notes = [], []
    for batch in _batches(versions()):
        measured.append(measure(model, preprocessing.normalise(np.stack([pixels for pixels, *_ in batch]))))
        notes += [note for _, *note in batch]
    labels, numbers, kinds = np.array(notes, dtype=np.int64).reshape(-1, 3).T
    if len(np.unique(numbers)) < LEAST:
        raise UserError(f"reference=true needs at least {LEAST} validation images that can be read.")
    images = Measures.concatenate(measured)
    return Versions(images, images.predicted == labels, numbers, kinds)


def fit(versions: Versions) -> Reference:
    """The reference from what was measured."""
    images, correct, even, clean = versions.images, versions.correct, versions.numbers % 2 == 0, versions.kinds == CLEAN
    mean, components = _principal(images.features[even])
    projected = replace(images, features=_project(images.features, mean, components))
    rows, count = vectors(projected), len(PERTURBATIONS)
    groups = [versions.kinds == kind for kind in (CLEAN, *range(count))]
    return Reference(
        projected[clean],
        correct[clean],
        mean,
        components,
        fit_kinds(rows, versions.kinds - CLEAN),
        _stack([fit_line(rows, correct, group.astype(np.float64)) for group in groups]),
        _stack([fit_line(rows, group, even * _balance(clean, group)) for group in groups[1:]]),
    )


def _stack(lines: Sequence[Line]) -> Line:
    """K lines with the same centre and scale as one with K results."""
    weights, bias = np.stack([line.weights for line in lines], axis=1), np.array([line.bias for line in lines])
    return Line(lines[0].centre, lines[0].scale, weights, bias)


def vectors(images: Measures) -> np.ndarray:
    """What `Line`s are functions of, float64 (N, D): the numbers of the images and their projected features."""
    confidence = np.clip(images.confidence.astype(np.float64), 1e-6, 1 - 1e-6)
    columns = [
        np.log(confidence / (1 - confidence)),
        images.margin,
        images.entropy,
        np.nan_to_num(images.novelty),
        images.brightness,
        images.contrast,
        images.sharpness,
        images.detail,
    ]
    return np.column_stack([*columns, images.features]).astype(np.float64)


def fit_line(rows: np.ndarray, target: np.ndarray, weights: np.ndarray | None = None) -> Line:
    """The logistic regression of a bool (N,) on (N, D) rows with weights (N,); a constant if all are equal."""
    centre, scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-9)
    used = np.ones(len(rows), dtype=bool) if weights is None else weights > 0
    if target[used].all() or not target[used].any():
        share = (target[used].sum() + 0.5) / (used.sum() + 1)
        return Line(centre, scale, np.zeros(rows.shape[1]), np.asarray(np.log(share / (1 - share))))
    from sklearn.linear_model import LogisticRegression

    standard, given = ((rows - centre) / scale)[used], None if weights is None else weights[used]
    fitted = LogisticRegression(C=PENALTY, solver="newton-cholesky").fit(standard, target[used], given)
    return Line(centre, scale, fitted.coef_[0], np.asarray(fitted.intercept_[0]))


def fit_kinds(rows: np.ndarray, kinds: np.ndarray) -> Line:
    """The multinomial logistic regression of kinds, int64 (N,) in 0..K, on (N, D) rows; all kinds count the same.

    A kind without rows, of images that cannot be perturbed, is never likely.
    """
    from sklearn.linear_model import LogisticRegression

    count = len(PERTURBATIONS) + 1
    centre, scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-9)
    weights, bias = np.zeros((rows.shape[1], count)), np.full(count, NEVER)
    present = np.unique(kinds)
    bias[present] = 0.0
    if len(present) > 1:
        chances = LogisticRegression(C=PENALTY, max_iter=1000, class_weight="balanced")
        chances.fit((rows - centre) / scale, kinds)
        # of two kinds there is one row: the logit of the second
        fitted, intercept = (
            (chances.coef_, chances.intercept_)
            if len(present) > 2
            else (np.stack([-chances.coef_[0] / 2, chances.coef_[0] / 2]), np.array([-0.5, 0.5]) * chances.intercept_)
        )
        weights[:, present], bias[present] = fitted.T, intercept
    return Line(centre, scale, weights, bias)


def _balance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 (N,): weights with which both sets count as much as the smaller one has images; 0 for all others."""
    least = min(first.sum(), second.sum())
    return first * (least / max(first.sum(), 1)) + second * (least / max(second.sum(), 1))


def _principal(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,), and the first COMPONENTS principal components (F, K), each scaled to a standard deviation of 1."""
    mean = features.mean(axis=0)
    _, lengths, directions = np.linalg.svd(features - mean, full_matrices=False)
    deviations = lengths / np.sqrt(len(features))
    kept = min(COMPONENTS, int((deviations > 1e-6 * max(deviations[0], 1e-30)).sum()))
    return mean, (directions[:kept] / deviations[:kept, None]).T.astype(np.float32)


def _project(features: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    return np.asarray((features - mean) @ components, dtype=np.float32)


def _batches(values: Iterator[tuple[np.ndarray, int, int, int]]) -> Iterator[list[tuple[np.ndarray, int, int, int]]]:
    batch = []
    for value in values:
        batch.append(value)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
