"""The probabilities of images by heads that have not seen them, from stored features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import eigh
from torch import Tensor

from imgcls.models.logistic import PENALTIES, Regression, scale_of

FOLDS = 5
ENOUGH = 2000
"""The penalty is chosen by the first parts that together have this many images."""
COMPONENTS = 1536
"""Where there are more features, and many more images, the heads are solved on as many principal components of them."""
SAMPLE = 10_000
"""Images whose features these components are found by."""

Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Out-of-fold probabilities, and the penalty of the heads that gave them.

    Attributes:
        probabilities: float32 (N, C), each row by a head that was solved without this image.
        penalty: strength of the L2 penalty, with which the images left out have the lowest log loss.
    """

    probabilities: np.ndarray
    penalty: float


def out_of_fold(
    features: Tensor, labels: np.ndarray, num_classes: int, *, groups: np.ndarray | None = None, seed: int = 0
) -> OutOfFold:
    """Classify each of FOLDS parts of the images by a linear head that is solved on the other parts.

    The first parts choose the penalty, which is on the weights of standardised features. The head of a further part
    starts from the first solution and is solved to the same tolerance, so that it does not depend on the images it is
    to judge.

    Args:
        features: float32 (N, F).
        labels: int64 (N,).
        num_classes: number of classes, C.
        groups: int64 (N,); images of a group, such as copies of one image, are in the same part.
        seed: of the parts.
    """
    reduced = len(labels) > 4 * COMPONENTS and features.shape[1] > COMPONENTS
    if reduced:
        features = principal_components(features)
    targets = torch.from_numpy(labels)
    fold_of = torch.from_numpy(deal(labels, groups, seed))
    tests = [torch.nonzero(fold_of == fold)[:, 0] for fold in range(FOLDS)]
    logits = features.new_zeros(len(labels), num_classes)

    def regression(fold: int, start: Layer | None = None) -> Regression:
        rest = torch.nonzero(fold_of != fold)[:, 0]
        ones = features.new_ones(len(rest))
        return Regression(features[rest], targets[rest], ones, num_classes, start, standardise=not reduced)

    choosing = min(FOLDS, -(-ENOUGH * FOLDS // max(1, len(labels))))
    judged = torch.cat(tests[:choosing])
    regressions, best, penalty, layers = [regression(fold) for fold in range(choosing)], math.inf, 0.0, []
    for step in PENALTIES:
        found = []
        for test, head in zip(tests, regressions, strict=False):
            head.solve(step)
            found.append(head.layer())
            logits[test] = _apply(found[-1], features[test])
        loss = float(F.cross_entropy(logits[judged], targets[judged]))
        if loss >= best:
            break
        best, penalty, layers = loss, step, found
    del regressions
    for fold in range(choosing, FOLDS):
        head = regression(fold, layers[0])
        head.solve(penalty)
        layers.append(head.layer())
    for test, layer in zip(tests, layers, strict=True):
        logits[test] = _apply(layer, features[test])
    return OutOfFold(logits.softmax(dim=1).numpy(), penalty)


def principal_components(features: Tensor) -> Tensor:
    """The COMPONENTS principal components of (N, F) standardised features, (N, COMPONENTS), not scaled."""
    mean, std = scale_of(features)
    some = (features[:: -(-len(features) // SAMPLE)] - mean) / std
    width = features.shape[1]
    # only the vectors that are needed, in a third of the time that torch takes for all
    _, vectors = eigh((some.T @ some / len(some)).numpy(), subset_by_index=(width - COMPONENTS, width - 1))
    directions = torch.from_numpy(vectors) / std[:, None]
    return torch.addmm(-(mean @ directions), features, directions)


def _apply(layer: Layer, features: Tensor) -> Tensor:
    weight, bias = layer
    return torch.addmm(bias, features, weight.T)


def deal(labels: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """int64 (N,): the part of each image, such that each class is dealt evenly and a group is in one part."""
    if not len(labels):
        return np.zeros(0, dtype=np.int64)
    if groups is None:
        groups = np.arange(len(labels))
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(labels[first][order], kind="stable")]
    part = np.empty(len(first), dtype=np.int64)
    part[order] = np.arange(len(first)) % FOLDS
    return part[group_of]
