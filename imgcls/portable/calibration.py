"""Whether a model's confidence can be believed, and the temperature that corrects it (Guo et al. 2017).

A temperature never changes the most likely class, as vector and Dirichlet scaling can. It is the one whose mean
confidence is the accuracy (Clarté et al. 2023): that of the lowest log loss also fits the probabilities of the other
classes, and leaves twice the calibration error with 120 of them (`benchmarks/RESULTS.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import numpy as np

BINS = 15
PARTS = 10  # of the validation images, each of which is measured with the temperature of the others
MAX_VALUES = 1_000_000  # logits that a temperature is fitted on
NAMES = {"ece": "calibration error", "nll": "log loss", "brier": "Brier score"}
LOWEST, HIGHEST = 0.05, 20.0  # temperatures


@dataclass(frozen=True)
class Quality:
    """How far probabilities can be believed; lower is better.

    Attributes:
        ece: expected calibration error, over 15 bins of equal width.
        nll: mean negative log likelihood of the true class.
        brier: mean squared distance of the probabilities from the true class (Brier 1950), 0 to 2.
    """

    ece: float
    nll: float
    brier: float


@dataclass(frozen=True)
class Calibration:
    """A temperature and its effect.

    Attributes:
        temperature: by which logits are divided; above 1 for an overconfident network, below 1 for an underconfident
            one, and 1 where no temperature improves the validation images.
        images: number of validation images that it was fitted on.
        effect: quality without and with the temperature, of `val`, where each tenth is measured with the temperature of
            the others, and of `test`.
        noise: of `val` and `test`, the calibration error that a perfectly calibrated model with the same confidences
            would show on as many images.
        interval: of 95 %, of the calibration error on the test images with the temperature; None: not measured.
    """

    temperature: float
    images: int
    effect: Mapping[str, tuple[Quality, Quality]]
    noise: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.temperature == 1:
            return f"Calibration: no temperature improves the confidence on {self.images:,} validation images."
        name, title = ("test", "Test") if "test" in self.effect else ("val", "Validation")
        changes = ", ".join(f"{metric} {old:.3g} -> {new:.3g}" for metric, (old, new) in self.changes(name).items())
        confident = "over" if self.temperature > 1 else "under"
        return (
            f"Calibration: the network is {confident}confident on {self.images:,} validation images; "
            f"the exported model divides its logits by {self.temperature:.3g}. "
            f"{title} images: {changes}.{self._noise(name)}"
        )

    def _noise(self, split: str) -> str:
        if split not in self.noise:
            return ""
        return f" On as few images, a perfectly calibrated model has a calibration error of {self.noise[split]:.2g}."

    def changes(self, split: str) -> dict[str, tuple[float, float]]:
        """Each quality of `split`, by its name, without and with the temperature."""
        before, after = self.effect[split]
        return {NAMES[name]: (value, getattr(after, name)) for name, value in asdict(before).items()}

    def as_dict(self) -> dict[str, Any]:
        """The content of `calibration` in `model.json`, with pairs of values without and with the temperature."""
        effect = {
            split: {name: [value, getattr(after, name)] for name, value in asdict(before).items()}
            for split, (before, after) in self.effect.items()
        }
        noise = {"noise": dict(self.noise)} if self.noise else {}
        interval = {"interval": list(self.interval)} if self.interval is not None else {}
        return {"temperature": self.temperature, "images": self.images, "effect": effect, **noise, **interval}


def calibrate(
    logits: np.ndarray, labels: np.ndarray, test: tuple[np.ndarray, np.ndarray] | None = None, seed: int = 0
) -> Calibration:
    """The temperature for the (N, C) `logits` of validation images, and its effect on them and on those of `test`.

    Each tenth of the images is measured with the temperature of the others; if that does not improve their likelihood,
    the temperature is 1. Otherwise it is fitted on all of them.
    """
    temperature, before = 1.0, judge(logits, labels)
    after = before
    if len(labels) > 1 and np.isfinite(before.losses).all():
        count = min(PARTS, len(labels))
        parts = np.array_split(np.random.default_rng(seed).permutation(len(labels)), count)
        judged = []
        for number, part in enumerate(parts):
            rest = np.concatenate(parts[:number] + parts[number + 1 :])
            judged.append(judge(logits, labels, match_confidence(logits[rest], labels[rest]), part))
        after = Judgement(*map(np.concatenate, zip(*map(astuple, judged), strict=True)))
        if after.quality.nll < before.quality.nll:
            temperature = match_confidence(logits, labels)
        else:
            after = before
    judged_by_split = {"val": (before, after)}
    if test is not None and len(test[1]):
        judged_by_split["test"] = judge(*test), judge(*test, temperature)
    effect = {split: (first.quality, second.quality) for split, (first, second) in judged_by_split.items()}
    noise = {split: noise_of(second.confidence) for split, (_, second) in judged_by_split.items()}
    noise = {split: value for split, value in noise.items() if np.isfinite(value)}  # JSON has no NaN
    return Calibration(temperature, len(labels), effect, noise)


@dataclass(frozen=True)
class Judgement:
    """How the probabilities of N images compare with their classes.

    Attributes:
        predicted: int (N,), the most likely class.
        confidence: float64 (N,), its probability.
        correct: bool (N,), whether it is the true one.
        rank: int (N,), number of classes with a higher logit than the true one.
        losses: float64 (N,), negative log likelihood of the true class.
        brier: float64 (N,), squared distance of the probabilities from the true class.
    """

    predicted: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    rank: np.ndarray
    losses: np.ndarray
    brier: np.ndarray

    @property
    def quality(self) -> Quality:
        """The means over the images."""
        error = expected_error(self.confidence, self.correct)
        return Quality(error, float(self.losses.mean()), float(self.brier.mean()))


def judge(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0, positions: np.ndarray | None = None
) -> Judgement:
    """The judgement of the softmax of (N, C) `logits` / `temperature`, at `positions` or of all images.

    Works on some images at a time: with many classes, the logits may fill the memory.
    """
    positions = np.arange(len(labels)) if positions is None else positions
    at_once = max(1, MAX_VALUES // max(1, logits.shape[1]))
    starts = range(0, max(1, len(positions)), at_once)
    parts = [_judge(logits[part], labels[part], temperature) for part in (positions[n : n + at_once] for n in starts)]
    return Judgement(*map(np.concatenate, zip(*parts, strict=True)))


def _judge(logits: np.ndarray, labels: np.ndarray, temperature: float) -> tuple[np.ndarray, ...]:
    places, predicted = np.arange(len(labels)), logits.argmax(axis=1)
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64) / temperature
    powers = np.exp(shifted)
    totals = powers.sum(axis=1)
    losses = np.log(totals) - shifted[places, labels]
    rank = (logits > logits[places, labels][:, None]).sum(axis=1)
    powers /= totals[:, None]
    brier = (powers**2).sum(axis=1) - 2 * powers[places, labels] + 1
    return predicted, powers[places, predicted], predicted == labels, rank, losses, brier


def match_confidence(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in 0.05..20 with which the mean confidence is the accuracy (Clarté et al. 2023).

    The accuracy is at most (N + 1) / (N + 2): N images that are all classified correctly do not prove that every image
    will be. Of very many images, every n-th is used.
    """
    every = -(-logits.size // MAX_VALUES)
    logits, labels = logits[::every], labels[::every]
    count = len(labels)
    accuracy = min(float((logits.argmax(axis=1) == labels).mean()), (count + 1) / (count + 2))
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    if logits.shape[1] < 2:
        return 1.0
    low, high = np.log(LOWEST), np.log(HIGHEST)
    for _ in range(20):
        middle = (low + high) / 2
        confidence = float((1 / np.exp(shifted / np.exp(middle)).sum(axis=1)).mean())
        low, high = (middle, high) if confidence > accuracy else (low, middle)
    return float(np.exp((low + high) / 2))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in 0.05..20 with the lowest mean log loss, which has one minimum in the inverse temperature.

    The targets are those of Platt (1999), (N + 1) / (N + 2) instead of 1: N images that are all classified correctly do
    not prove that every image will be, and would otherwise have the lowest temperature of all.

    A subset is enough for a single number: of very many images, every n-th is used.
    """
    every = -(-logits.size // MAX_VALUES)
    logits, labels = logits[::every], labels[::every]
    doubt = 1 / (len(labels) + 2)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    true = shifted[np.arange(len(labels)), labels]
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, shifted)
    if logits.shape[1] < 2:
        return 1.0

    def loss(inverse: float) -> float:
        highest = others.max(axis=1)
        rest = np.log(np.exp((others - highest[:, None]) * inverse).sum(axis=1)) + highest * inverse
        total = np.logaddexp(true * inverse, rest)
        return float(np.mean(total - (1 - doubt) * true * inverse - doubt * rest))

    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(np.exp(left)) < loss(np.exp(right)) else (left, high)
    return float(np.exp(-(low + high) / 2))


def expected_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The mean gap between confidence and accuracy over bins of equal width, weighted by their number of images."""
    finite = np.isfinite(confidence)  # the confidence of a diverged network is NaN
    bins = np.clip((np.where(finite, confidence, 0) * BINS).astype(int), 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / max(len(confidence), 1))


def noise_of(confidence: np.ndarray, draws: int = 100, seed: int = 0) -> float:
    """The expected calibration error of a perfectly calibrated model with these confidences, float (N,).

    It is not 0, because the accuracy in a bin of few images is chance (Broecker and Smith 2007): the mean over answers
    that are drawn to be right as often as the confidence says. NaN where a confidence is.
    """
    rng = np.random.default_rng(seed)
    if not len(confidence) or not np.isfinite(confidence).all():
        return float("nan")
    draws = max(1, min(draws, MAX_VALUES // len(confidence)))
    return float(np.mean([expected_error(confidence, rng.random(len(confidence)) < confidence) for _ in range(draws)]))
