"""Classes that hide two groups of images, such as two species under one name."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

FEWEST = 30
"""With fewer images of a class its groups are not looked for."""
MOST = 2000
"""Of more images of a class as many are looked at."""
DIMENSIONS = 10
"""Principal components in which groups are looked for."""
SEPARATION = 4.5
"""A normal distribution cut in two has 2.7, a uniform one 3.5. None of ten classes of Caltech-256 had more than
this, and 44 of 45 pairs of them under one name had."""
SMALLEST = 0.1
"""Share of the class that the smaller group has at least."""
RIDGE = 0.1


class HiddenGroups(NamedTuple):
    """A class that seems to be two.

    Attributes:
        label: the class.
        separation: distance of the two groups' means in their mean standard deviation (Ashman's D), on images that did
            not choose the groups.
        share: of the smaller group.
        first, second: positions of the images of the two groups that are nearest to its mean, nearest first.
    """

    label: int
    separation: float
    share: float
    first: tuple[int, ...]
    second: tuple[int, ...]


def find_hidden_groups(
    features: np.ndarray, labels: np.ndarray, num_classes: int, *, examples: int = 4, seed: int = 0
) -> list[HiddenGroups]:
    """The classes whose features are in two groups, most separate first.

    A half of the images of a class is cut in two by 2-means, and the other half is projected on the discriminant of
    the two parts (Fisher 1936): only true groups are apart there.

    Args:
        features: float32 (N, F).
        labels: int64 (N,).
        num_classes: number of classes.
        examples: images of each group that are named.
        seed: of the halves and starts.
    """
    found = []
    for label in range(num_classes):
        rows = np.flatnonzero(labels == label)
        random = np.random.default_rng([seed, label])
        if len(rows) > MOST:
            rows = np.sort(random.choice(rows, MOST, replace=False))
        if len(rows) >= FEWEST:
            group = _groups_of(features[rows], seed)
            if group is not None:
                separation, nearest = group
                first, second = (tuple(rows[part[:examples]].tolist()) for part in nearest)
                share = min(map(len, nearest)) / len(rows)
                found.append(HiddenGroups(label, separation, share, first, second))
    return sorted(found, key=lambda group: -group.separation)


def _groups_of(features: np.ndarray, seed: int) -> tuple[float, list[np.ndarray]] | None:
    """The separation of two groups, and the images of each, nearest to its mean first; None if there is one group."""
    centred = features - features.mean(axis=0)
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    dimensions = min(DIMENSIONS, len(values) - 1)
    points = vectors[:, -dimensions:] * np.sqrt(np.maximum(values[-dimensions:], 0))
    half = np.random.default_rng(seed).permutation(len(points)) % 2 == 0
    separation = float(np.mean([_separation(points[part], points[~part], seed) for part in (half, ~half)]))
    means, group = _two_means(points, seed)
    if separation < SEPARATION or min(group.mean(), 1 - group.mean()) < SMALLEST:
        return None
    distances = np.linalg.norm(points - means[group.astype(int)], axis=1)
    members = [np.flatnonzero(group == number) for number in (False, True)]
    return separation, [part[np.argsort(distances[part])] for part in members]


def _separation(chosen: np.ndarray, others: np.ndarray, seed: int) -> float:
    """Ashman's D of `others` on the discriminant of the two parts of `chosen`."""
    means, group = _two_means(chosen, seed)
    if group.all() or not group.any():
        return 0.0
    within = np.cov((chosen - means[group.astype(int)]).T)
    within = np.atleast_2d(within) + RIDGE * np.trace(np.atleast_2d(within)) / len(means[0]) * np.eye(len(means[0]))
    axis = np.linalg.solve(within, means[1] - means[0])
    places = others @ axis
    right = places >= means.mean(axis=0) @ axis
    if min(right.sum(), (~right).sum()) < 3:
        return 0.0
    spread = math.sqrt(places[right].var() + places[~right].var())
    return float(math.sqrt(2) * (places[right].mean() - places[~right].mean()) / max(spread, 1e-12))


def _two_means(points: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The means (2, D) and bool (N,) the group of each of `points`, by 2-means."""
    from sklearn.cluster import KMeans

    found = KMeans(2, n_init=4, random_state=seed).fit(points)
    return found.cluster_centers_, found.labels_ == 1
