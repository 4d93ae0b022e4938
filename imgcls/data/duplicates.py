"""Pictures that are in two splits: identical ones, and near-duplicates such as resized or recompressed copies.

Near-duplicates are found by a 64-bit difference hash (N. Krawetz, "Kind of Like That", 2013): the signs of the
differences of neighbours in a 9x8 grey thumbnail. Candidates whose thumbnails differ in colour are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from imgcls.data.checks import Findings
from imgcls.data.sources import Source, Split

# Looked at, all pairs that these find between test and training pictures of CIFAR-10 are one picture, cut, scaled or
# compressed otherwise. The root of the mean square rather than the mean: two things on white differ in a small part.
MOST_DIFFERENT_BITS = 7  # then two hashes agree in at least one of their eight bytes
LARGEST_DIFFERENCE = 15.0  # root mean square over a thumbnail's values in 0..255
FLATTEST = 2.0  # standard deviation of a grey thumbnail below which a picture shows nothing to compare
AT_ONCE = 4_000_000  # candidates


class Duplicate(NamedTuple):
    """A picture of a later split that is in an earlier one too."""

    kind: Literal["identical", "near"]
    split: str
    name: str
    other_split: str
    """train, or val."""
    other_name: str
    same_class: bool


def find_duplicates(source: Source, findings: Mapping[str, Findings]) -> list[Duplicate]:
    """The pictures of val that are in train, and those of test that are in train or val; the nearest one of each.

    Args:
        source: the data set.
        findings: what `checks.inspect` saw of each split's pictures.
    """
    splits = list(source.splits())
    pairs = [(split, other) for at, split in enumerate(splits) for other in splits[:at]]
    return [
        _describe(kind, split, source.splits()[split], i, other, source.splits()[other], j)
        for split, other in pairs
        for kind, i, j in _between(findings[split], findings[other])
    ]


def difference_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """uint64 (N,) of thumbnails uint8 (N, 8, 9, 3): a bit is set where a grey value is larger than its left one."""
    grey = _grey(thumbnails)
    bits = grey[:, :, 1:] > grey[:, :, :-1]
    return np.packbits(bits.reshape(len(bits), 64), axis=1).view(np.uint64).reshape(-1)


def _between(new: Findings, old: Findings) -> Iterator[tuple[Literal["identical", "near"], int, int]]:
    """(kind, position in `new`, position in `old`), at most one for each of `new`."""
    usable, usable_old = (np.array([not reason for reason in one.reasons], dtype=bool) for one in (new, old))
    places = {digest.tobytes(): place for place, digest in enumerate(old.digests) if usable_old[place]}
    identical = {
        i: places[digest.tobytes()] for i, digest in enumerate(new.digests) if usable[i] and digest.tobytes() in places
    }
    telling, telling_old = usable & _tells(new.thumbnails), usable_old & _tells(old.thumbnails)
    telling[list(identical)] = False
    rows, old_rows = np.flatnonzero(telling), np.flatnonzero(telling_old)
    near = _nearest(new.thumbnails[rows], old.thumbnails[old_rows]) if len(rows) and len(old_rows) else {}
    found = {i: ("identical", j) for i, j in identical.items()}
    found |= {int(rows[i]): ("near", int(old_rows[j])) for i, j in near.items()}
    yield from ((found[i][0], i, found[i][1]) for i in sorted(found))  # type: ignore[misc]


def _nearest(new: np.ndarray, old: np.ndarray) -> dict[int, int]:
    """For each thumbnail of `new` that has near ones in `old`, the place of the nearest."""
    best: dict[int, tuple[float, int]] = {}
    for i, j in _candidates(difference_hashes(new), difference_hashes(old)):
        for start in range(0, len(i), 100_000):
            part = slice(start, start + 100_000)
            squares = (new[i[part]].astype(np.float32) - old[j[part]]) ** 2
            differences = np.sqrt(squares.mean(axis=(1, 2, 3)))
            for at in np.flatnonzero(differences <= LARGEST_DIFFERENCE):
                here = int(i[part][at])
                best[here] = min(best.get(here, (np.inf, -1)), (float(differences[at]), int(j[part][at])))
    return {i: j for i, (_, j) in best.items()}


def _candidates(new: np.ndarray, old: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions (i in `new`, j in `old`) whose hashes differ in few bits; a pair may come more than once."""
    parts, old_parts = (hashes.view(np.uint8).reshape(-1, 8) for hashes in (new, old))
    for part in range(8):
        order = np.argsort(old_parts[:, part], kind="stable")
        ordered = old_parts[order, part]
        first, last = (np.searchsorted(ordered, parts[:, part], side) for side in ("left", "right"))
        for rows in _portions(last - first):
            counts = (last - first)[rows]
            i = np.repeat(rows, counts)
            within = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
            j = order[np.repeat(first[rows], counts) + within]
            close = _count_bits(new[i] ^ old[j]) <= MOST_DIFFERENT_BITS
            yield i[close], j[close]


def _portions(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Positions whose `counts` add up to about AT_ONCE, portion by portion."""
    ends = np.searchsorted(np.cumsum(counts), np.arange(AT_ONCE, counts.sum() + AT_ONCE, AT_ONCE), side="right")
    yield from (part for part in np.split(np.arange(len(counts)), ends) if len(part))


def _count_bits(values: np.ndarray) -> np.ndarray:
    """How many bits are set in each uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values)
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)  # numpy 1


def _grey(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails.astype(np.int32) @ np.array([299, 587, 114], dtype=np.int32)


def _tells(thumbnails: np.ndarray) -> np.ndarray:
    return _grey(thumbnails).reshape(len(thumbnails), -1).std(axis=1) > 1000 * FLATTEST


def _describe(
    kind: Literal["identical", "near"], split: str, new: Split, i: int, other: str, old: Split, j: int
) -> Duplicate:
    return Duplicate(kind, split, new.names[i], other, old.names[j], bool(new.labels[i] == old.labels[j]))
