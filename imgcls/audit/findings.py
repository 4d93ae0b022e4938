"""What the audit of a data set finds, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from imgcls.audit.hidden_groups import HiddenGroups
from imgcls.audit.labels import LabelFindings
from imgcls.audit.worth import Gain
from imgcls.data.duplicates import Kind
from imgcls.data.sources import Source


class Copy(NamedTuple):
    """Two images that show the same: their places among all images, and whether they have different labels."""

    kind: Kind
    image: int
    earlier: int
    contradicts: bool


class Cause(NamedTuple):
    """The errors of one cause.

    Attributes:
        name: of `causes.CAUSES`.
        errors: positions among the validation images.
        remedy: what was done to the images to measure the gain.
        gain: what it gained; None where it could not be measured.
    """

    name: str
    errors: np.ndarray
    remedy: str
    gain: Gain | None


@dataclass(frozen=True, eq=False)
class Errors:
    """The errors on the validation images by cause.

    Attributes:
        predicted: int64 (M,), of the model.
        by_cause: the causes that have errors, in their order.
        accuracy: of the model on the validation images.
        head_accuracy: of the head that the gains are measured with.
        pairs: confusable pairs of classes.
    """

    predicted: np.ndarray
    by_cause: tuple[Cause, ...]
    accuracy: float
    head_accuracy: float
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found in the N images of all splits, which follow each other as in `source.splits()`.

    Attributes:
        source: the images.
        probabilities: float32 (N, C), out-of-fold.
        labels: which labels are wrong.
        copies: images that show the same, within a split and between splits.
        poor: what is wrong with each image, '' for most.
        hidden: classes that hide two groups.
        errors: None without validation images.
    """

    source: Source
    probabilities: np.ndarray
    labels: LabelFindings
    copies: tuple[Copy, ...]
    poor: tuple[str, ...]
    hidden: tuple[HiddenGroups, ...]
    errors: Errors | None

    @property
    def given(self) -> np.ndarray:
        """int64 (N,), the labels that the data set gives."""
        return np.concatenate([split.labels for split in self.source.splits().values()])

    @property
    def contradictory(self) -> np.ndarray:
        """bool (N,): images of which a copy has another label."""
        marks = np.zeros(len(self.poor), dtype=bool)
        for copy in self.copies:
            marks[[copy.image, copy.earlier]] |= copy.contradicts
        return marks

    def place(self, image: int) -> tuple[str, int]:
        """The split and the position in it of the image at this place among all."""
        for name, split in self.source.splits().items():
            if image < len(split):
                return name, image
            image -= len(split)
        raise IndexError(image)


def groups_of(source: Source, copies: tuple[Copy, ...], *, by_source: bool = True) -> np.ndarray:
    """int64 (N,): copies of one image, and images of one group of the data set, have the same number.

    The groups of the data set do not count with `by_source=False`.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = sum(len(split) for split in source.splits().values())
    pairs = [(copy.image, copy.earlier) for copy in copies]
    first: dict[str, int] = {}
    place = 0
    for split in source.splits().values() if by_source else ():
        for row, group in enumerate(split.groups or ()):
            pairs.append((place + row, first.setdefault(group, place + row)))
        place += len(split)
    one, other = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    edges = coo_matrix((np.ones(len(pairs), dtype=np.int8), (one, other)), shape=(count, count))
    groups: np.ndarray = connected_components(edges, directed=False)[1]
    return groups
