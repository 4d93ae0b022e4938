"""How sure a metric is: 95 % intervals, and whether two runs differ, from the logits of a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imgcls.models.choices import COUNTED, COUNTED_OVERALL, RANKED, split_metric
from imgcls.models.ranking import areas, in_parts, softmax_columns
from imgcls.models.scores import Counts, score
from imgcls.portable.calibration import BINS, judge

REPLICATES = 1000
MAX_DRAWS = 20_000_000  # images drawn in all; of more images, fewer replicates
MIN_REPLICATES = 200
Z = 1.959964  # the 97.5 % quantile of the normal distribution
SIGNED = ("cohen_kappa", "matthews_corrcoef")  # which can be below 0
NAMES = ("loss", "macro_f1")  # of the metrics that are bootstrapped
MAX_MULTIPLE = 64.0  # of the measured gaps, where they are far smaller than their noise
MAX_AT_ONCE = 200_000  # images of replicates that are measured together
Interval = tuple[float, float]


PARTS = 20  # of a delete-group jackknife
MIN_PARTS = 5


def intervals(
    logits: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    named: Iterable[str] = (),
    groups: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """95 % intervals of loss, accuracy, accuracy_top5 (more than five classes), macro_f1 and ece, and `named` metrics.

    Accuracies have Wilson's interval (1927), which is right where every image is classified correctly: that does not
    show that every image will be. The calibration error, which every sample overestimates, has all values under which
    the measured one would not be surprising, see `_calibration_interval`. The others have the percentiles of a
    bootstrap within each class (Efron 1979).

    Images of a group are alike, and say less than as many others: with `groups`, the intervals of all metrics but those
    from ranks come from `jackknife`, which leaves whole groups out, and that of the calibration error from the sums of
    the groups.

    Args:
        logits: float (N, C).
        labels: int (N,).
        seed: of the bootstrap.
        named: metrics of the option `metrics`; of those that torchmetrics computes there is none, see `jackknife`.
        groups: the group of each image, such as its patient, if they have one.
    """
    images = _Images.of(logits, labels)
    if not len(labels) or not np.isfinite(images.losses).all():
        return {}
    if groups is not None:
        return _group_intervals(images, named, groups, seed)
    found = {name: wilson(float(values.sum()), len(values)) for name, values in images.hits.items()}
    replicates = min(REPLICATES, max(MIN_REPLICATES, MAX_DRAWS // len(labels)))
    counted = [name for name in named if split_metric(name)[0] in (*COUNTED, *COUNTED_OVERALL)]
    samples = images.sample(np.random.default_rng(seed), replicates, counted)
    [values] = images.measure(np.arange(len(labels))[None], counted)
    for name, value, column in zip([*NAMES, *counted], values, samples.T, strict=True):
        low, high = np.quantile(column, (0.025, 0.975))
        found[name] = (low, high)
        if name != "loss" and high - low < 1e-9:  # the images of each class are all alike
            found[name] = wilson(min(1.0, max(0.0, float(value))) * len(labels), len(labels))
    found["ece"] = _calibration_interval(images, images.units(), seed)
    found |= _ranked_intervals(logits, labels, [name for name in named if split_metric(name)[0] in RANKED])
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def calibration_interval(
    logits: np.ndarray, labels: np.ndarray, seed: int = 0, groups: Sequence[str] | None = None
) -> Interval | None:
    """That of `ece` in `intervals`, without the others; None where there is none."""
    images = _Images.of(logits, labels)
    if not len(labels) or not np.isfinite(images.losses).all():
        return None
    if groups is not None and len(set(groups)) < MIN_PARTS:
        return None
    return _calibration_interval(images, images.units(groups), seed)


def _ranked_intervals(logits: np.ndarray, labels: np.ndarray, names: list[str]) -> dict[str, Interval]:
    """The intervals of means of areas under curves, from how much each image moves them (infinitesimal jackknife).

    Wilson's interval of as many images as would have that variance. Where the order is perfect, that is of all images:
    it does not show that it always will be.
    """
    counts = np.bincount(labels, minlength=logits.shape[1])
    measurable = (counts > 0) & (counts < len(labels))
    if not names or not measurable.any():
        return {}
    weights = {name: measurable * (counts if split_metric(name)[1] == "weighted" else 1.0) for name in names}
    values, moved = dict.fromkeys(names, 0.0), {name: np.zeros(len(labels)) for name in names}
    for part, scores, true in in_parts(softmax_columns(logits), labels, logits.shape[1]):
        found = areas(scores, true)
        for name in names:
            plain, share = split_metric(name)[0], (weights[name] / weights[name].sum())[part]
            values[name] += float(np.nansum(getattr(found, plain) * share))
            moved[name] += np.nansum(getattr(found, f"{plain}_influence") * share, axis=1)
    intervals = {}
    for name, value in values.items():
        centred = moved[name] - (np.bincount(labels, moved[name], len(counts)) / np.maximum(counts, 1))[labels]
        spread = np.maximum(counts, 1) / np.maximum(counts - 1, 1)  # of the few images of a class
        variance = float((centred**2 * spread[labels]).sum())
        equivalent = value * (1 - value) / variance if variance > 1e-12 and value < 1 else len(labels)
        intervals[name] = wilson(value * equivalent, equivalent)
    return intervals


def _group_intervals(images: _Images, named: Iterable[str], groups: Sequence[str], seed: int) -> dict[str, Interval]:
    counted = [name for name in named if split_metric(name)[0] in (*COUNTED, *COUNTED_OVERALL)]
    names = [*images.hits, *NAMES, *counted]

    def measure(places: np.ndarray) -> np.ndarray:
        hits = [values[places].mean() for values in images.hits.values()]
        return np.concatenate([hits, images.measure(places[None], counted)[0]])

    values = measure(np.arange(len(images.labels)))
    found = jackknife_all(measure, values, images.labels, seed, [groups[place] for place in images.order])
    if found is None:
        return {}
    result = {"ece": _calibration_interval(images, images.units(groups), seed)}
    for name, value, (low, high) in zip(names, values, found, strict=True):
        if name == "loss":
            result[name] = max(0.0, low), high
        elif high - low < 1e-9:  # the images of each group are all alike
            result[name] = wilson(min(1.0, max(0.0, float(value))) * len(set(groups)), len(set(groups)))
        else:
            result[name] = max(-1.0 if name in SIGNED else 0.0, low), min(1.0, high)
    return result


def _calibration_interval(images: _Images, unit_of: np.ndarray, seed: int) -> Interval:
    """The interval of the calibration error, from the gaps between confidence and accuracy in the bins.

    Their sums over independent units are normal. The true gaps are taken for a multiple of the measured ones, and the
    interval is of those multiples under which the measured error is between the 2.5 % and the 97.5 % quantile. A
    bootstrap adds noise to the noise of the sample: it held the true error of 300 images in three of four cases.

    Args:
        images: the images.
        unit_of: int (N,), the image or group that each image belongs to.
        seed: of the draws.
    """
    units = int(unit_of.max()) + 1
    sums = np.bincount(unit_of * BINS + images.bins, images.gaps / len(images.labels), units * BINS)
    sums = sums.reshape(units, BINS)
    gaps, centred = sums.sum(axis=0), sums - sums.mean(axis=0)
    values, directions = np.linalg.eigh(units / max(1, units - 1) * centred.T @ centred)
    draws = np.random.default_rng(seed).standard_normal((REPLICATES, BINS))
    noise = _student(max(1, units - 1)) / Z * draws * np.sqrt(values.clip(0)) @ directions.T
    measured = float(np.abs(gaps).sum())

    def multiple(quantile: float) -> float:
        """At which the measured error is this quantile; 0 if it is below that of a calibrated model."""

        def exceeds(factor: float) -> bool:
            return bool(np.quantile(np.abs(factor * gaps + noise).sum(axis=1), quantile) >= measured)

        if exceeds(0):
            return 0.0
        high = 1.0
        while not exceeds(high) and high < MAX_MULTIPLE:
            high *= 2
        low = 0.0
        for _ in range(15):
            middle = (low + high) / 2
            low, high = (low, middle) if exceeds(middle) else (middle, high)
        return high

    return measured * multiple(0.975), measured * (multiple(0.025) or 1.0)


def jackknife(
    measure: Callable[[np.ndarray], float],
    value: float,
    labels: np.ndarray,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Interval | None:
    """The 95 % interval of any metric, from its values without each of 20 parts of the images (Shao and Wu 1989).

    Args:
        measure: the metric of the images at these positions, int (K,).
        value: the metric of all images.
        labels: int (N,), each class of which is spread over the parts; or with several labels (N, C).
        seed: of the parts.
        groups: the group of each image, if they have one: the images of a group are in one part.

    Returns:
        None where the metric is not finite, or there are fewer images than parts, or fewer than 5 groups.
    """
    found = jackknife_all(lambda places: np.array([measure(places)]), np.array([value]), labels, seed, groups)
    return found[0] if found is not None else None


def jackknife_all(
    measure: Callable[[np.ndarray], np.ndarray],
    values: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> list[Interval] | None:
    """As `jackknife`, of several metrics that are measured together."""
    part_of = _deal(labels, seed) if groups is None else _deal_groups(groups, seed)
    parts = int(part_of.max(initial=-1)) + 1
    if parts < (PARTS if groups is None else MIN_PARTS) or not np.isfinite(values).all():
        return None
    without = np.stack([measure(np.flatnonzero(part_of != part)) for part in range(parts)])
    if not np.isfinite(without).all():
        return None
    variance = (parts - 1) / parts * ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    reaches = _student(parts - 1) * np.sqrt(variance)
    return [(float(value - reach), float(value + reach)) for value, reach in zip(values, reaches, strict=True)]


def _student(degrees: int) -> float:
    """The 97.5 % quantile of Student's distribution."""
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


def _deal(labels: np.ndarray, seed: int) -> np.ndarray:
    """int (N,): the part of each image, with each class spread over all."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.ndim == 1:
        order = order[np.argsort(labels[order], kind="stable")]
    part_of = np.empty(len(order), dtype=np.int64)
    part_of[order] = np.arange(len(order)) % PARTS
    return part_of


def _deal_groups(groups: Sequence[str], seed: int) -> np.ndarray:
    """int (N,): the part of each image, with as many images in each part as the groups allow."""
    _, group_of, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(counts))
    sizes = np.zeros(min(PARTS, len(counts)), dtype=np.int64)
    part_of_group = np.empty(len(counts), dtype=np.int64)
    for group in order[np.argsort(-counts[order], kind="stable")]:
        part_of_group[group] = sizes.argmin()
        sizes[sizes.argmin()] += counts[group]
    return part_of_group[group_of]


def as_metrics(found: Mapping[str, Interval], split: str) -> dict[str, float]:
    """The intervals as metrics: `test/accuracy_low` and `test/accuracy_high`."""
    pairs = [(f"{split}/{name}", interval) for name, interval in found.items()]
    return {f"{name}_{end}": value for name, ends in pairs for end, value in zip(("low", "high"), ends, strict=True)}


def is_bound(name: str, metrics: Mapping[str, object]) -> bool:
    """Whether the metric `name` is the end of an interval of another one, or its standard deviation over folds."""
    return any(name.endswith(end) and name.removesuffix(end) in metrics for end in ("_low", "_high", "_sd"))


def wilson(hits: float, count: float) -> Interval:
    """The 95 % interval of a share (Wilson 1927).

    >>> [round(bound, 3) for bound in wilson(47, 47)]
    [0.924, 1.0]
    """
    share, square = hits / count, Z**2 / count
    centre = (share + square / 2) / (1 + square)
    reach = Z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach))  # despite rounding


@dataclass(frozen=True)
class _Images:
    """What the metrics of any sample of the images need, sorted by class."""

    order: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    losses: np.ndarray
    hits: Mapping[str, np.ndarray]
    bins: np.ndarray
    gaps: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    classes: int

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray) -> _Images:
        order = np.argsort(labels, kind="stable")
        judged = judge(logits, labels, positions=order)
        labels, classes = labels[order], logits.shape[1]
        hits = {"accuracy": judged.correct}
        if classes > 5:
            hits["accuracy_top5"] = judged.rank < 5
        counts = np.bincount(labels, minlength=classes)
        return cls(
            order=order,
            labels=labels,
            predicted=judged.predicted,
            losses=judged.losses,
            hits=hits,
            bins=np.clip((judged.confidence * BINS).astype(int), 0, BINS - 1),
            gaps=judged.confidence - judged.correct,
            starts=(np.cumsum(counts) - counts)[labels],
            counts=counts[labels],
            classes=classes,
        )

    def units(self, groups: Sequence[str] | None = None) -> np.ndarray:
        """int (N,): which independent unit each image belongs to, its group, or itself where there are no groups."""
        if groups is None:
            return np.arange(len(self.labels))
        unit_of: np.ndarray = np.unique(np.asarray(groups), return_inverse=True)[1][self.order]
        return unit_of

    def sample(self, rng: np.random.Generator, replicates: int, counted: Sequence[str] = ()) -> np.ndarray:
        """The metrics of `replicates` samples with replacement from each class, as many as it has: as `measure`."""
        at_once = max(1, MAX_AT_ONCE // len(self.labels))
        parts = []
        for first in range(0, replicates, at_once):
            draws = rng.random((min(at_once, replicates - first), len(self.labels))) * self.counts
            parts.append(self.measure(self.starts + draws.astype(np.int64), counted))
        return np.concatenate(parts)

    def measure(self, positions: np.ndarray, counted: Sequence[str] = ()) -> np.ndarray:
        """Loss, macro F1 and the M `counted` metrics, float (R, 2 + M), of replicates.

        `positions` are those of their images, int (R, K), whose K classes are the same in every row.
        """
        replicates = len(positions)
        predicted = self.predicted[positions]

        def count(values: np.ndarray, size: int, weights: np.ndarray | None = None) -> np.ndarray:
            """The sum of `weights`, or the number, of each of `size` values in each replicate."""
            places = values + size * np.arange(replicates)[:, None]
            flat = weights.ravel() if weights is not None else None
            return np.bincount(places.ravel(), weights=flat, minlength=size * replicates).reshape(replicates, size)

        labels = self.labels[positions[0]]  # of every replicate: each has as many images of a class
        right = count(predicted, self.classes, (predicted == labels).astype(float))
        answers, true = count(predicted, self.classes), np.bincount(labels, minlength=self.classes)
        both = answers + true
        there = both > 0
        f1 = np.divide(2 * right, both, out=np.zeros_like(right), where=there).sum(axis=1) / there.sum(axis=1)
        counts = Counts(right, answers - right, true - right, len(labels))
        more = [score(*split_metric(name), counts) for name in counted]
        return np.stack([self.losses[positions].mean(axis=1), f1, *more], axis=1)


@dataclass(frozen=True)
class Difference:
    """What two classifiers get right of the same images.

    Attributes:
        images: number of images, N.
        first, second: images that only the first, or only the second, classifies correctly.
        changed: images whose predicted class differs.
    """

    images: int
    first: int
    second: int
    changed: int

    @property
    def points(self) -> float:
        """How much higher the second accuracy is, -1 to 1."""
        return (self.second - self.first) / self.images

    @property
    def interval(self) -> Interval:
        """The 95 % interval of `points` for paired shares (Agresti and Min 2005), right also without a difference."""
        first, second, count = self.first + 0.5, self.second + 0.5, self.images + 2
        centre = (second - first) / count
        reach = Z * math.sqrt(max(0.0, first + second - (second - first) ** 2 / count)) / count
        return max(-1.0, centre - reach), min(1.0, centre + reach)

    @property
    def p_value(self) -> float:
        """How often chance alone makes a difference this large: McNemar's exact test (1947)."""
        count = self.first + self.second
        tail = sum(math.comb(count, k) for k in range(min(self.first, self.second) + 1))
        return min(1.0, 2 * tail / 2**count)

    def sentence(self, first: str, second: str) -> str:
        """The difference in one sentence, for runs of these names."""
        low, high = self.interval
        verdict = "the difference is real" if self.p_value < 0.05 else "the difference may be chance"
        return (
            f"{second} is {100 * self.points:+.2f} points from {first} in test accuracy (95 %: {100 * low:+.2f} to "
            f"{100 * high:+.2f}): of {self.images} images, {second} alone classifies {self.second} correctly, {first} "
            f"alone {self.first}, and the predictions of {self.changed} differ; p = {self.p_value:.2g}: {verdict}."
        )


def difference(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> Difference:
    """The difference of two (N, C) logits for the same images with these labels."""
    predicted = [logits.argmax(axis=1) for logits in (first, second)]
    right = [values == labels for values in predicted]
    return Difference(
        len(labels),
        int((right[0] & ~right[1]).sum()),
        int((right[1] & ~right[0]).sum()),
        int((predicted[0] != predicted[1]).sum()),
    )
