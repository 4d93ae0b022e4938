"""How unlike the training images an image is, and from where on a model should say that it does not know it.

The score is 1 - the cosine between the features and the nearest mean of a class: of those that `benchmarks/unknown.py`
compares (energy, k nearest neighbours, Mahalanobis, ViM, …) the one that is good everywhere, and the smallest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

MEANS = "class_means"
"""Name of the tensor in the file of a portable model."""
SMALLEST = 1e-6  # spread of 1 - cosine; less is the rounding of a network
ROUNDING = 2e-3  # of a novelty: the image at the bound is known with any engine


@dataclass(frozen=True)
class Novelty:
    """A score of the features of an image: 0 for a usual image, above 1 for an unknown one.

    Attributes:
        means: float32 (K, F), the mean directions of the features of the K classes with training images, of length 1.
        scale: by which 1 - cosine is multiplied.
        offset: is added then.
        share: of the images of `images` that are known, with a score of at most 1.
        images: number of images that the bound is chosen by, which neither the means nor the network have seen.
        test: the share of the test images that are known; None: not measured.
    """

    means: np.ndarray
    scale: float
    offset: float
    share: float
    images: int
    test: float | None = None

    def __str__(self) -> str:
        test = "" if self.test is None else f", and {1 - self.test:.1%} of the test images"
        return (
            "An image with a novelty above 1 counts as unknown: "
            f"by mistake {1 - self.share:.1%} of {self.images:,} images of known classes{test}."
        )

    def of(self, features: np.ndarray) -> np.ndarray:
        """float64 (N,) for (N, F) features."""
        return self.scale * _angles(features, self.means) + self.offset

    def measured(self, features: np.ndarray) -> Novelty:
        """The same with the share of the known ones among test images, from their (N, F) features."""
        return replace(self, test=float((self.of(features) <= 1).mean())) if len(features) else self

    def as_dict(self) -> dict[str, Any]:
        """The content of `novelty` in `model.json`; the means are in a file of their own."""
        test = {} if self.test is None else {"test": self.test}
        return {"share": self.share, "images": self.images, "scale": self.scale, "offset": self.offset, **test}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], means: np.ndarray) -> Novelty:
        """Read what `as_dict` wrote. Raises KeyError, TypeError or ValueError if it is damaged."""
        scale, offset, share = (float(values[name]) for name in ("scale", "offset", "share"))
        if not all(map(math.isfinite, (scale, offset, share))):
            raise ValueError("novelty has numbers that are not finite")
        return cls(means, scale, offset, share, int(values["images"]), values.get("test"))


def fit_novelty(
    features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, share: float, *, frozen: bool = False
) -> Novelty | None:
    """The score whose bound `share` of images like the held-out ones do not exceed; None if they are too few to tell.

    The bound is that of split conformal prediction, so that the share holds in the mean for any number of images.

    Args:
        features: float32 (M, F), of training images.
        labels: int (M,), their classes.
        held_out: float32 (N, F), features of validation images.
        share: of known images, between 0 and 1.
        frozen: the network has not been trained on the training images either. Each of them is then judged by the means
            without it (leave one out), and the bound is chosen by several times as many images.
    """
    if not all(np.isfinite(values).all() for values in (features, held_out)):
        return None
    directions, (_, labels) = _unit(features), np.unique(labels, return_inverse=True)
    counts = np.bincount(labels)
    sums = np.stack([directions[labels == label].sum(axis=0) for label in range(len(counts))])
    means = _unit(sums)
    angles = [_angles(held_out, means)]
    if frozen:
        angles.append(_left_out(directions, labels, sums)[counts[labels] > 1])
    ordered = np.sort(np.concatenate(angles))
    place = math.ceil((len(ordered) + 1) * share - 1e-9)
    if place > len(ordered):
        return None
    usual, bound = float(np.median(ordered)), float(ordered[place - 1])
    if bound - usual < SMALLEST:
        return None
    scale = 1 / (bound - usual)
    return Novelty(means.astype(np.float32), scale, -usual * scale - ROUNDING, share, len(ordered))


def _left_out(directions: np.ndarray, labels: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """1 - the cosine of each (M, F) direction to the nearest mean, of its own class without it."""
    cosines = directions @ _unit(sums).T
    cosines[np.arange(len(labels)), labels] = (directions * _unit(sums[labels] - directions)).sum(axis=1)
    nearest: np.ndarray = 1 - cosines.max(axis=1)
    return nearest


def minimum_images(share: float) -> int:
    """How many images a bound for `share` needs.

    >>> minimum_images(0.95)
    19
    """
    return math.ceil(share / (1 - share) - 1e-9)


def _unit(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _angles(features: np.ndarray, means: np.ndarray) -> np.ndarray:
    return 1 - (_unit(features) @ means.astype(np.float64).T).max(axis=1)
