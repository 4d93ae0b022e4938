"""Splits that depend on the seed and the pictures' names alone, not on their order on disk."""

from __future__ import annotations

import hashlib
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


def cut(split: Split, shares: list[float], seed: int) -> list[Split]:
    """Cut `split` into parts of about `shares` (which sum to 1) of each class; the first gets at least one of each.

    A picture's place is decided by a hash of the seed and its name, so adding pictures moves few others.
    """
    parts: list[list[int]] = [[] for _ in shares]
    keys = [hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in split.names]
    for label in np.unique(split.labels):
        members = sorted(np.flatnonzero(split.labels == label).tolist(), key=keys.__getitem__)
        ends = np.round(np.cumsum(shares) * len(members)).astype(int)
        ends[0] = max(1, ends[0])
        begins = [0, *ends[:-1]]
        for part, begin, end in zip(parts, begins, ends, strict=True):
            part.extend(members[begin : max(begin, end)])
    return [split.subset(sorted(part)) for part in parts]
