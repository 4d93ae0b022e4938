"""Split a data set by the seed and the images' names alone, whatever their order on disk."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import numpy as np

from imgcls.data.sources import Source, Split
from imgcls.errors import UserError


def with_validation(source: Source, fraction: float, seed: int) -> Source:
    """`source` with `fraction` of each class's training images moved to a validation split."""
    train, val = cut(source.train, [1 - fraction, fraction], seed)
    if not len(val):
        grouped = "" if source.train.groups is None else f" in {len(set(source.train.groups))} groups"
        raise UserError(
            f"The data set has no validation images, and data.val_fraction={fraction} of its {len(source.train):,} "
            f"training images{grouped} is none (each class keeps at least one). Raise data.val_fraction, or add images."
        )
    return replace(source, train=train, val=val)


def cut(split: Split, shares: Sequence[float], seed: int) -> list[Split]:
    """Split into parts with `shares` of each class, which sum to 1; the first part has at least one image per class.

    Images are ordered within a class by a hash of the seed and the name. Rounding errors are carried to the next class,
    so that a part has its share of the whole even if no class is large enough for one image of it. Where the images
    have groups, each group is in one part, and the shares are met as far as the groups allow.
    """
    return [split.subset(part) for part in cut_positions(split, shares, seed)]


def cut_positions(split: Split, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """The positions of the images of each part of `cut`, int64 (n,), in order."""
    if split.groups is not None:
        return [np.flatnonzero(parts) for parts in _cut_groups(split, shares, seed, first_has_all=True)]
    order, cumulative = _by_class(split, seed), np.cumsum(shares)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    before = 0
    for count in np.unique(split.strata, return_counts=True)[1].tolist():
        members = order[before : before + count]
        ends = np.rint(cumulative * (before + count)) - np.rint(cumulative * before)
        ends = np.maximum.accumulate(np.maximum(ends, 1)).astype(int)
        for part, begin, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.append(members[begin:end])
        before += count
    return [np.sort(np.concatenate([order[:0], *part])) for part in parts]


def deal(split: Split, count: int, seed: int) -> list[np.ndarray]:
    """The positions of the images of `count` parts that are alike, int64 (n,), in order.

    The images of each class are dealt in the order of a hash, and the parts differ by one image at most, of each class
    and of the whole. Where the images have groups, each group is in one part, as in `cut`.
    """
    if split.groups is not None:
        return [np.flatnonzero(parts) for parts in _cut_groups(split, [1 / count] * count, seed, first_has_all=False)]
    order = _by_class(split, seed)
    return [np.sort(order[start::count]) for start in range(count)]


def _by_class(split: Split, seed: int) -> np.ndarray:
    """The positions of all images by class, and within a class by a hash, int64 (N,)."""
    return np.lexsort((_hashes(seed, split.names), split.strata))


def _hashes(seed: int, names: Iterable[str]) -> np.ndarray:
    """A hash of each name and the seed, uint64 (N,)."""
    digests = (hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _cut_groups(split: Split, shares: Sequence[float], seed: int, *, first_has_all: bool) -> np.ndarray:
    """Which images are in each part, bool (parts, N), such that no group is in two parts.

    Greedy, as scikit-learn's StratifiedGroupKFold: the largest groups first, each into the part where it reduces the
    squared distance from the shares most, relative to the size of each class and of the whole.
    """
    assert split.groups is not None
    ids: dict[str, int] = {}
    group_of = np.array([ids.setdefault(group, len(ids)) for group in split.groups], dtype=np.int64)
    names = list(ids)
    strata = split.strata
    classes = int(strata.max()) + 1 if len(split) else 0
    # Flat lists of numbers, and plain loops: there may be a million groups. Those of group g have the places
    # starts[g] to starts[g + 1] of `labels` and `counts`, a class and its number of images.
    pairs, numbers = np.unique(group_of * classes + strata, return_counts=True)
    labels, counts = (pairs % max(classes, 1)).tolist(), numbers.tolist()
    starts = np.searchsorted(pairs, classes * np.arange(len(names) + 1)).tolist()
    sizes = np.bincount(group_of, minlength=len(names)).tolist()
    totals, whole = np.bincount(strata, minlength=classes).tolist(), len(split)
    lacking = [[share * total for total in (*totals, whole)] for share in shares]
    part_of = [0] * len(names)
    for group in np.lexsort((_hashes(seed, names), -np.array(sizes))).tolist():
        places, size = range(starts[group], starts[group + 1]), sizes[group]
        part, least = 0, math.inf
        for number, lack in enumerate(lacking):
            cost = 0.0
            for place in places:
                cost += counts[place] * (counts[place] - 2 * lack[labels[place]]) / totals[labels[place]]
            cost += size * (size - 2 * lack[classes]) / whole
            if cost < least:
                part, least = number, cost
        part_of[group] = part
        for place in places:
            lacking[part][labels[place]] -= counts[place]
        lacking[part][classes] -= size
    if first_has_all:
        _repair(part_of, names, labels, starts, sizes, shares)
    parts = np.array(part_of, dtype=np.int64)
    return parts[group_of] == np.arange(len(shares))[:, None]


def _repair(
    part_of: list[int],
    names: list[str],
    labels_of_all: list[int],
    starts: list[int],
    sizes: list[int],
    shares: Sequence[float],
) -> None:
    """Move small groups, so that the first part has every class, and then, if it can keep them, no part is empty."""

    def labels_of(group: int) -> list[int]:
        return labels_of_all[starts[group] : starts[group + 1]]

    missing = [part for part, share in enumerate(shares) if share and part not in part_of]
    first_has = Counter(chain.from_iterable(labels_of(group) for group, part in enumerate(part_of) if part == 0))
    if not missing and len(first_has) == len(set(labels_of_all)):
        return
    holders: dict[int, list[int]] = defaultdict(list)  # class to its groups, the smallest first
    by_size = sorted(range(len(part_of)), key=lambda group: (sizes[group], names[group]))
    for group in by_size:
        for label in labels_of(group):
            holders[label].append(group)
    for label in sorted(holders):
        if not first_has[label]:
            moved = holders[label][0]
            part_of[moved] = 0
            first_has.update(labels_of(moved))
    for part, share in enumerate(shares):
        if share and part not in part_of:
            for group in by_size:
                labels = labels_of(group)
                if part_of[group] == 0 and all(first_has[label] > 1 for label in labels):
                    part_of[group] = part
                    first_has.subtract(labels)
                    break


def with_groups(source: Source, pattern: str) -> Source:
    """`source` with the group of each image by the regular expression `pattern` on its name.

    The group is what the pattern's first parentheses match, or the whole match without any; an image whose name does
    not match is a group of its own. Raises UserError if no name matches, or the pattern is not valid.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.group={pattern} is not a regular expression: {error}.") from error
    place, found = min(expression.groups, 1), 0
    splits: dict[str, Any] = {}
    for name, split in source.splits().items():
        matches = [expression.search(image) for image in split.names]
        groups = tuple(
            image if match is None else match.group(place) or image
            for image, match in zip(split.names, matches, strict=True)
        )
        found += sum(match is not None for match in matches)
        splits[name] = replace(split, groups=groups)
    if not found:
        example = source.train.names[0] if len(source.train) else ""
        raise UserError(f"data.group={pattern} matches no image; the first one is called {example!r}.")
    return replace(source, **splits)


def shared_groups(source: Source) -> tuple[str, ...]:
    """A note for each pair of splits of `source` that have groups in common."""
    groups = {name: set(split.groups) for name, split in source.splits().items() if split.groups is not None}
    notes = []
    for (one, first), (other, second) in combinations(groups.items(), 2):
        if shared := sorted(first & second):
            more = f" and {len(shared) - 3:,} more" if shared[3:] else ""
            notes.append(
                f"{one} and {other} share {len(shared):,} of the groups that should be in one split only "
                f"({', '.join(shared[:3])}{more}): the results on {other} may be too good."
            )
    return tuple(notes)
