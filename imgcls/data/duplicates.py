"""Find images that are in two splits: identical ones, and near-duplicates such as resized or recompressed copies.

Near-duplicates are found by a 64-bit difference hash (N. Krawetz, "Kind of Like That", 2013): the signs of the
differences of neighbours in a 9x8 grey thumbnail. Candidates whose thumbnails differ in colour are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from imgcls.data.checks import Findings
from imgcls.data.sources import Source

# With these limits, all pairs between test and training images of CIFAR-10 were, by inspection, the same image cropped,
# scaled or compressed differently. Root mean square, not mean: two objects on white differ in a small area only.
MAX_DIFFERENT_BITS = 7  # then two hashes agree in at least one of their eight bytes
MAX_RMS_DIFFERENCE = 15.0  # over a thumbnail's values in 0..255
MIN_CONTRAST = 2.0  # standard deviation of a grey thumbnail; an image with less has nothing to compare
CHUNK_CANDIDATES = 4_000_000

Kind = Literal["identical", "near"]


class Duplicate(NamedTuple):
    """An image of a later split that is in an earlier one too."""

    kind: Kind
    split: str
    name: str
    other_split: str
    """The earlier split: train or val."""
    other_name: str
    same_class: bool


def find_duplicates(source: Source, findings: Mapping[str, Findings]) -> list[Duplicate]:
    """The images of val that are in train, and those of test that are in train or val, each with its nearest copy.

    `findings` are those of `checks.inspect` for each split.
    """
    return [
        Duplicate(kind, name, new.names[i], other, old.names[j], bool(new.labels[i] == old.labels[j]))
        for (other, old), (name, new) in combinations(source.splits().items(), 2)
        for i, (kind, j) in _match(findings[name], findings[other]).items()
    ]


def difference_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """uint64 (N,) of thumbnails uint8 (N, 8, 9, 3): a bit is set where a grey value exceeds its left neighbour."""
    grey = _grey(thumbnails)
    bits = grey[:, :, 1:] > grey[:, :, :-1]
    return np.packbits(bits.reshape(len(bits), 64), axis=1).view(np.uint64).reshape(-1)


def _match(new: Findings, old: Findings) -> dict[int, tuple[Kind, int]]:
    """By position in `new`, for images that are in `old` too: the kind, and the position in `old`."""
    usable, usable_old = new.reasons == "", old.reasons == ""
    places = {digest.tobytes(): place for place, digest in enumerate(old.digests) if usable_old[place]}
    matches: dict[int, tuple[Kind, int]] = {
        i: ("identical", places[digest.tobytes()])
        for i, digest in enumerate(new.digests)
        if usable[i] and digest.tobytes() in places
    }
    comparable = usable & _has_contrast(new.thumbnails)
    comparable[list(matches)] = False
    rows, old_rows = np.flatnonzero(comparable), np.flatnonzero(usable_old & _has_contrast(old.thumbnails))
    near = _find_nearest(new.thumbnails[rows], old.thumbnails[old_rows]) if len(rows) and len(old_rows) else {}
    matches |= {int(rows[i]): ("near", int(old_rows[j])) for i, j in near.items()}
    return dict(sorted(matches.items()))


def _find_nearest(new: np.ndarray, old: np.ndarray) -> dict[int, int]:
    """By position in `new`, for thumbnails with near ones in `old`: the position of the nearest."""
    best: dict[int, tuple[float, int]] = {}
    for i, j in _candidates(difference_hashes(new), difference_hashes(old)):
        for start in range(0, len(i), 100_000):
            part = slice(start, start + 100_000)
            squares = (new[i[part]].astype(np.float32) - old[j[part]]) ** 2
            differences = np.sqrt(squares.mean(axis=(1, 2, 3)))
            for row in np.flatnonzero(differences <= MAX_RMS_DIFFERENCE):
                position = int(i[part][row])
                candidate = (float(differences[row]), int(j[part][row]))
                best[position] = min(best.get(position, candidate), candidate)
    return {i: j for i, (_, j) in best.items()}


def _candidates(new: np.ndarray, old: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions (i in `new`, j in `old`) whose hashes differ in few bits; pairs may be repeated."""
    parts, old_parts = (hashes.view(np.uint8).reshape(-1, 8) for hashes in (new, old))
    for part in range(8):
        order = np.argsort(old_parts[:, part], kind="stable")
        ordered = old_parts[order, part]
        first, last = (np.searchsorted(ordered, parts[:, part], side) for side in ("left", "right"))
        for rows in _chunks(last - first):
            counts = (last - first)[rows]
            i = np.repeat(rows, counts)
            within = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
            j = order[np.repeat(first[rows], counts) + within]
            close = _count_bits(new[i] ^ old[j]) <= MAX_DIFFERENT_BITS
            yield i[close], j[close]


def _chunks(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive positions whose `counts` add up to about CHUNK_CANDIDATES."""
    limits = np.arange(CHUNK_CANDIDATES, counts.sum() + CHUNK_CANDIDATES, CHUNK_CANDIDATES)
    ends = np.searchsorted(np.cumsum(counts), limits, side="right")
    yield from (part for part in np.split(np.arange(len(counts)), ends) if len(part))


def _count_bits(values: np.ndarray) -> np.ndarray:
    """Number of set bits of each uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values)
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)  # numpy 1


def _grey(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails.astype(np.int32) @ np.array([299, 587, 114], dtype=np.int32)


def _has_contrast(thumbnails: np.ndarray) -> np.ndarray:
    return _grey(thumbnails).reshape(len(thumbnails), -1).std(axis=1) > 1000 * MIN_CONTRAST
