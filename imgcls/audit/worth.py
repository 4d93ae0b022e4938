"""What correcting some images is worth: the head solved again with them corrected, on the validation images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imgcls.audit.heads import Head

Z = 1.96
"""Standard errors in half a 95 % interval."""
MOST_SEEN = 300
"""Correctly classified images that are seen whole, to estimate how many of them would not be."""


class Gain(NamedTuple):
    """The change of the validation accuracy, as a share of the images.

    Attributes:
        images: number of images that were corrected, added or left out.
        gain: by how much the accuracy rises.
        margin: half of the 95 % interval of the gain.
    """

    images: int
    gain: float
    margin: float


class Worth:
    """The head of a data set, and what changes of the data set would do to its validation accuracy.

    Args:
        features: float32 (N, F), of the training images.
        labels: int64 (N,).
        val_features: float32 (M, F), of the validation images.
        val_labels: int64 (M,).
        num_classes: number of classes.
        penalty: of the head, see `OutOfFold`; None: chosen by thirds of the training images.
    """

    def __init__(
        self,
        features: Tensor,
        labels: np.ndarray,
        val_features: Tensor,
        val_labels: np.ndarray,
        num_classes: int,
        penalty: float | None,
    ) -> None:
        self.features, self.labels = features, labels
        self.val_features, self.val_labels = val_features, val_labels
        self.head = Head.solved(features, labels, num_classes, penalty)
        self.predicted = self.head.predict(val_features)
        self.right = self.predicted == val_labels

    def relabel(self, labels: np.ndarray, val_labels: np.ndarray) -> Gain:
        """The gain with these labels instead, both in training and in what counts as right."""
        changed = int((labels != self.labels).sum())
        head = self.head.again(self.features, labels) if changed else self.head
        after = head.predict(self.val_features) == val_labels
        return self._gain(changed + int((val_labels != self.val_labels).sum()), after)

    def add(self, rows: np.ndarray, seed: int = 0) -> Gain:
        """The gain with more training images like the validation images at `rows`.

        Halves of these are added in turn, and the validation images that are not added are measured.
        """
        after = np.zeros(len(self.val_labels))
        measured = np.zeros(len(self.val_labels))
        for half in np.array_split(np.random.default_rng(seed).permutation(rows), 2):
            features = torch.cat([self.features, self.val_features[torch.from_numpy(half)]])
            head = self.head.again(features, np.concatenate([self.labels, self.val_labels[half]]))
            others = np.setdiff1d(np.arange(len(after)), half)
            after[others] += head.predict(self.val_features)[others] == self.val_labels[others]
            measured[others] += 1
        return self._gain(len(rows) - len(rows) // 2, after / measured)

    def leave_out(self, rows: np.ndarray, val_rows: np.ndarray) -> Gain:
        """The gain without the training images at `rows`, and with usual images in place of the validation ones."""
        kept = np.setdiff1d(np.arange(len(self.labels)), rows)
        keeps_all = len(kept) == len(self.labels) or len(np.unique(self.labels[kept])) < len(np.unique(self.labels))
        head = self.head if keeps_all else self.head.again(self.features[torch.from_numpy(kept)], self.labels[kept])
        after = (head.predict(self.val_features) == self.val_labels).astype(float)
        usual = np.setdiff1d(np.arange(len(after)), val_rows)
        after[val_rows] = after[usual].mean() if len(usual) else 0.0
        return self._gain((0 if keeps_all else len(rows)) + len(val_rows), after)

    def see_whole(self, whole: Callable[[np.ndarray], Tensor], seed: int = 0) -> tuple[Gain, np.ndarray]:
        """The gain with the whole images in evaluation, and which errors would be right, bool (M,).

        `whole` computes the features, float32 (n, F), of whole validation images at given positions, int64 (n,).
        """
        errors = np.flatnonzero(~self.right)
        some = np.random.default_rng(seed).permutation(np.flatnonzero(self.right))[:MOST_SEEN]
        rows = np.concatenate([errors, some])
        right = self.head.predict(whole(rows)) == self.val_labels[rows]
        now_right = np.zeros(len(self.right), dtype=bool)
        now_right[errors] = right[: len(errors)]
        others = len(self.right) - len(errors)
        lost = 1 - float(right[len(errors) :].mean()) if len(some) else 0.0
        gain = _paired(len(self.right), float(now_right.sum()), lost * others)
        unseen = lost * (1 - lost) / max(1, len(some)) * (1 - len(some) / max(1, others))
        margin = math.hypot(gain.margin, Z * math.sqrt(unseen) * others / max(1, len(self.right)))
        return gain._replace(images=int(now_right.sum()), margin=margin), now_right

    def double(self, classes: Sequence[int], seed: int = 0) -> Gain:
        """Up to what twice the training images of `classes` would gain: what half of them lose.

        By the usual learning curves (Hestness et al. 2017) each doubling gains a little less than the one before it.
        """
        random, gone = np.random.default_rng(seed), []
        for label in classes:
            rows = random.permutation(np.flatnonzero(self.labels == label))
            gone.append(rows[: len(rows) // 2])
        dropped = np.concatenate([np.zeros(0, dtype=np.int64), *gone])
        kept = np.setdiff1d(np.arange(len(self.labels)), dropped)
        head = self.head.again(self.features[torch.from_numpy(kept)], self.labels[kept])
        before = head.predict(self.val_features) == self.val_labels
        risen, fallen = float((self.right & ~before).sum()), float((before & ~self.right).sum())
        images = int(np.isin(self.labels, list(classes)).sum())
        return _paired(len(before), risen, fallen)._replace(images=images)

    def _gain(self, images: int, after: np.ndarray) -> Gain:
        change = after.astype(float) - self.right
        return _paired(len(change), float(change.clip(0).sum()), float(-change.clip(max=0).sum()))._replace(
            images=images
        )


def _paired(count: int, risen: float, fallen: float) -> Gain:
    """The difference of two accuracies of the same images, with its interval (Agresti and Min 2005)."""
    if not count:
        return Gain(0, 0.0, 0.0)
    difference = risen - fallen
    variance = (risen + fallen + 1 - difference**2 / (count + 2)) / (count + 2) ** 2
    return Gain(0, difference / count, Z * math.sqrt(max(0.0, variance)))
