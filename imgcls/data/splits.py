"""Splits that depend on the seed and the pictures' names alone, not on their order on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from imgcls.data.sources import Source, Split
from imgcls.errors import UserError


def with_validation(source: Source, fraction: float, seed: int) -> Source:
    """`source` with `fraction` of each class's training pictures moved to a validation split."""
    train, val = cut(source.train, [1 - fraction, fraction], seed)
    if not len(val):
        raise UserError(
            f"The data set has no validation pictures, and data.val_fraction={fraction} of its {len(source.train)} "
            "training pictures is none. Raise data.val_fraction, or add pictures."
        )
    return replace(source, train=train, val=val)


def cut(split: Split, shares: Sequence[float], seed: int) -> list[Split]:
    """Cut `split` into parts of `shares` (which sum to 1) in each class; the first gets at least one of each class.

    The order within a class is that of a hash of the seed and the name. What rounding takes from one class it gives
    to the next, so that a part has its share of the whole even where no class is large enough for one picture of it.
    """
    keys = [hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in split.names]
    upto = np.cumsum(shares)
    parts: list[list[int]] = [[] for _ in shares]
    before = 0
    for label in np.unique(split.labels):
        members = sorted(np.flatnonzero(split.labels == label).tolist(), key=keys.__getitem__)
        ends = np.rint(upto * (before + len(members))) - np.rint(upto * before)
        ends = np.maximum.accumulate(np.maximum(ends, 1)).astype(int)
        for part, begin, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.extend(members[begin:end])
        before += len(members)
    return [split.subset(sorted(part)) for part in parts]
