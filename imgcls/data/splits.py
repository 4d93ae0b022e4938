"""Split a data set by the seed and the images' names alone, whatever their order on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from imgcls.data.sources import Source, Split
from imgcls.errors import UserError


def with_validation(source: Source, fraction: float, seed: int) -> Source:
    """`source` with `fraction` of each class's training images moved to a validation split."""
    train, val = cut(source.train, [1 - fraction, fraction], seed)
    if not len(val):
        raise UserError(
            f"The data set has no validation images, and data.val_fraction={fraction} of its {len(source.train)} "
            "training images is none. Raise data.val_fraction, or add images."
        )
    return replace(source, train=train, val=val)


def cut(split: Split, shares: Sequence[float], seed: int) -> list[Split]:
    """Split into parts with `shares` of each class, which sum to 1; the first part has at least one image per class.

    Images are ordered within a class by a hash of the seed and the name. Rounding errors are carried to the next class,
    so that a part has its share of the whole even if no class is large enough for one image of it.
    """
    keys = [hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in split.names]
    cumulative = np.cumsum(shares)
    parts: list[list[int]] = [[] for _ in shares]
    before = 0
    for label in np.unique(split.labels):
        members = sorted(np.flatnonzero(split.labels == label).tolist(), key=keys.__getitem__)
        ends = np.rint(cumulative * (before + len(members))) - np.rint(cumulative * before)
        ends = np.maximum.accumulate(np.maximum(ends, 1)).astype(int)
        for part, begin, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.extend(members[begin:end])
        before += len(members)
    return [split.subset(sorted(part)) for part in parts]
