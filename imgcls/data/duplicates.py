"""Find images that are in two splits: identical ones, and near-duplicates such as resized or recompressed copies.

Near-duplicates are found by a 64-bit difference hash (N. Krawetz, "Kind of Like That", 2013): the signs of the
differences of neighbours in a 9x8 grey thumbnail. Candidates whose thumbnails differ in colour are dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from imgcls.data.checks import Findings
from imgcls.data.sources import Source
from imgcls.errors import UserError
from imgcls.system.files import atomic_write_text

# With these limits, all pairs between test and training images of CIFAR-10 were, by inspection, the same image cropped,
# scaled or compressed differently. Root mean square, not mean: two objects on white differ in a small area only.
MAX_DIFFERENT_BITS = 7  # then two hashes have a part of 16 bits in which they differ in at most one
MAX_RMS_DIFFERENCE = 15.0  # over a thumbnail's values in 0..255
MIN_CONTRAST = 2.0  # standard deviation of a grey thumbnail; an image with less has nothing to compare
VERSION = b"2"  # of the search and its limits, in the name of a result that is kept
DIMENSIONS = 15  # of the points among which neighbours are searched; more make a tree no quicker
FIRST_NEIGHBOURS = 4
# When this many neighbours have been compared and one of them is near, the search ends. With 50,000 objects on white it
# has then found the nearest of all for 99.7 % of the images, and for the others one that is at most 1 further away.
ENOUGH_NEIGHBOURS = 32
MANY_CANDIDATES = 5000  # by hash; comparing this many takes as long as searching the tree
MANY_OF_ALL = 32  # in large data sets, an image has many candidates if they are more than 1/32 of all images
SLACK, ROUNDING = 1.001, 0.1  # of a lower bound, which for equal images is not 0 on every processor
ROWS_AT_A_TIME = 8192
CHUNK_CANDIDATES = 1_000_000

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


def find_duplicates(
    source: Source, findings: Mapping[str, Findings], cache: Path | None = None, workers: int = 1
) -> list[Duplicate]:
    """The images of val that are in train, and those of test that are in train or val, each with its nearest copy.

    Args:
        source: the data set.
        findings: of `checks.inspect` for each split.
        cache: folder in which the result is kept for the same images, names and classes; None keeps nothing.
        workers: threads.
    """
    file = None if cache is None else cache / "duplicates" / f"{_key(source, findings)}.json"
    if file is not None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return [Duplicate(*row) for row in json.loads(file.read_text(encoding="utf-8"))]
    found = [
        Duplicate(kind, name, new.names[i], other, old.names[j], bool(np.array_equal(new.labels[i], old.labels[j])))
        for (other, old), (name, new) in combinations(source.splits().items(), 2)
        for i, (kind, j) in _match(findings[name], findings[other], workers).items()
    ]
    if file is not None:
        with contextlib.suppress(OSError, UserError):  # without it the search is only repeated
            atomic_write_text(file, json.dumps(found))
    return found


def find_copies(found: Findings) -> list[tuple[Kind, int, int]]:
    """Pairs of images that show the same: (kind, position, position of an earlier one), in the order of positions.

    Of identical images each is paired with the first. Near-duplicates are compared where their hashes have few
    candidates, as those of photographs have.
    """
    usable = np.flatnonzero(found.reasons == "")
    if not len(usable):
        return []
    _, first, place = np.unique(found.digests[usable], axis=0, return_index=True, return_inverse=True)
    earlier = usable[first][place.reshape(-1)]
    pairs: list[tuple[Kind, int, int]] = [
        ("identical", int(i), int(j)) for i, j in zip(usable, earlier, strict=True) if i != j
    ]
    rows = usable[(earlier == usable) & _has_contrast(found.thumbnails[usable])]
    thumbnails = found.thumbnails[rows]
    hashes = difference_hashes(thumbnails)
    index = _HashIndex(hashes)
    few = np.flatnonzero(index.count(hashes) <= MANY_CANDIDATES)
    near = set()
    for i, j in index.candidates(hashes[few]):
        later = few[i] > j
        i, j = few[i[later]], j[later]
        close = _differences(thumbnails, thumbnails, i, j) <= MAX_RMS_DIFFERENCE
        near |= set(zip(rows[i[close]].tolist(), rows[j[close]].tolist(), strict=True))
    return sorted([*pairs, *(("near", i, j) for i, j in near)], key=lambda pair: pair[1:])


def _key(source: Source, findings: Mapping[str, Findings]) -> str:
    """32 hexadecimal digits of everything that the result depends on."""
    digest = hashlib.blake2b(VERSION, digest_size=16)
    for name, split in source.splits().items():
        digest.update(json.dumps([name, [*split.names], [bool(reason) for reason in findings[name].reasons]]).encode())
        for column in (split.labels, findings[name].digests, findings[name].thumbnails):
            digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def difference_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """uint64 (N,) of thumbnails uint8 (N, 8, 9, 3): a bit is set where a grey value exceeds its left neighbour."""
    grey = _grey(thumbnails)
    bits = grey[:, :, 1:] > grey[:, :, :-1]
    return np.packbits(bits.reshape(len(bits), 64), axis=1).view(np.uint64).reshape(-1)


def _match(new: Findings, old: Findings, workers: int) -> dict[int, tuple[Kind, int]]:
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
    near = _find_nearest(new.thumbnails[rows], old.thumbnails[old_rows], workers) if len(rows) and len(old_rows) else {}
    matches |= {int(rows[i]): ("near", int(old_rows[j])) for i, j in near.items()}
    return dict(sorted(matches.items()))


def _find_nearest(new: np.ndarray, old: np.ndarray, workers: int = 1) -> dict[int, int]:
    """By position in `new`, for thumbnails with near ones in `old`: the position of the nearest.

    A thumbnail is compared with all whose hashes have a similar part, where these are few, as for photographs; those of
    objects on white have thousands, and the nearest is found by its colours. Then it is only nearly always the nearest,
    but where one is near, one is found.
    """
    index = _HashIndex(difference_hashes(old))
    hashes = difference_hashes(new)
    many = index.count(hashes) > max(MANY_CANDIDATES, len(old) // MANY_OF_ALL)
    best: dict[int, tuple[float, int]] = {}
    few = np.flatnonzero(~many)
    for i, j in index.candidates(hashes[few]):
        differences = _differences(new, old, few[i], j)
        for row in np.flatnonzero(differences <= MAX_RMS_DIFFERENCE):
            position, candidate = int(few[i[row]]), (float(differences[row]), int(j[row]))
            best[position] = min(best.get(position, candidate), candidate)
    found = {i: j for i, (_, j) in best.items()}
    if many.any():
        found |= _find_nearest_by_colour(new, old, hashes, index.hashes, np.flatnonzero(many), workers)
    return found


class _HashIndex:
    """Finds hashes by their four parts of 16 bits: of two that differ in seven bits, one part differs in at most one.

    (M. Norouzi, A. Punjani and D. Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012)
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes, parts = hashes, hashes.view(np.uint16).reshape(-1, 4)
        self._order = [np.argsort(parts[:, part], kind="stable") for part in range(4)]
        self._counts = [np.bincount(parts[:, part], minlength=1 << 16) for part in range(4)]
        self._first = [np.cumsum(counts) - counts for counts in self._counts]

    def count(self, hashes: np.ndarray) -> np.ndarray:
        """The number of candidates of each hash, int64 (n,), repeated ones included."""
        return sum((self._counts[part][values] for part, values in _probes(hashes)), np.zeros(len(hashes), np.int64))

    def candidates(self, hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of positions (i in `hashes`, j in the index) that differ in few bits; pairs may be repeated."""
        for part, values in _probes(hashes):
            all_counts = self._counts[part][values]
            for rows in _chunks(all_counts):
                counts = all_counts[rows]
                i = np.repeat(rows, counts)
                within = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
                j = self._order[part][np.repeat(self._first[part][values[rows]], counts) + within]
                close = _count_bits(hashes[i] ^ self.hashes[j]) <= MAX_DIFFERENT_BITS
                yield i[close], j[close]


def _probes(hashes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the part, its values uint16 (n,) as they are and with each bit changed)."""
    parts = hashes.view(np.uint16).reshape(-1, 4)
    for part in range(4):
        for change in (0, *(1 << bit for bit in range(16))):
            yield part, parts[:, part] ^ np.uint16(change)


def _find_nearest_by_colour(
    new: np.ndarray, old: np.ndarray, hashes: np.ndarray, old_hashes: np.ndarray, chosen: np.ndarray, workers: int
) -> dict[int, int]:
    """As `_find_nearest`, of the rows `chosen` of `new`, by nearest neighbours.

    They are found by a lower bound of the difference, a few at first and more until none that is left can be nearer
    (T. Seidl and H.-P. Kriegel, "Optimal Multi-Step k-Nearest Neighbor Search", 1998), or one is near and those that
    could be nearer are many. What is near in the tree is near in memory too, of both splits, so that most of it is in
    the processor's cache when it is asked for.
    """
    from scipy.spatial import cKDTree

    project = _projection(old)
    points = project(old)
    order = cKDTree(points, balanced_tree=False).indices
    tree, old, old_hashes = cKDTree(points[order], balanced_tree=False), old[order], old_hashes[order]
    queries = project(new[chosen])
    near_each_other = cKDTree(queries, balanced_tree=False).indices
    chosen, queries = chosen[near_each_other], queries[near_each_other]
    position_of = np.append(order, len(old))  # the tree answers with len(old) where it finds no neighbour
    found: dict[int, int] = {}
    for start in range(0, len(chosen), ROWS_AT_A_TIME):
        rows, count = np.arange(start, min(start + ROWS_AT_A_TIME, len(chosen))), FIRST_NEIGHBOURS
        while len(rows):
            count = min(count, len(old))
            left: list[np.ndarray] = []
            for part in np.split(rows, range(0, len(rows), max(1, CHUNK_CANDIDATES // count))[1:]):
                limit = MAX_RMS_DIFFERENCE * SLACK
                bounds, places = tree.query(queries[part], count, distance_upper_bound=limit, workers=workers)
                bounds, places = bounds.reshape(len(part), count), places.reshape(len(part), count)
                differences = np.full(bounds.shape, np.inf, dtype=np.float32)
                at = np.nonzero(np.isfinite(bounds))
                close = _count_bits(hashes[chosen[part[at[0]]]] ^ old_hashes[places[at]]) <= MAX_DIFFERENT_BITS
                at = at[0][close], at[1][close]
                differences[at] = _differences(new, old, chosen[part[at[0]]], places[at])
                differences[differences > MAX_RMS_DIFFERENCE] = np.inf
                nearest = differences.min(axis=1)
                position = np.where(differences == nearest[:, None], position_of[places], len(old)).min(axis=1)
                done = (bounds[:, -1] > nearest * SLACK + ROUNDING) | ~np.isfinite(bounds[:, -1]) | (count == len(old))
                done |= np.isfinite(nearest) & (count >= ENOUGH_NEIGHBOURS)
                known = done & np.isfinite(nearest)
                found |= zip(chosen[part[known]].tolist(), position[known].tolist(), strict=True)
                left.append(part[~done])
            rows, count = np.concatenate(left), 8 * count
    return found


def _chunks(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive positions whose `counts` add up to about CHUNK_CANDIDATES."""
    limits = np.arange(CHUNK_CANDIDATES, counts.sum() + CHUNK_CANDIDATES, CHUNK_CANDIDATES)
    ends = np.searchsorted(np.cumsum(counts), limits, side="right")
    yield from (part for part in np.split(np.arange(len(counts)), ends) if len(part))


def _projection(thumbnails: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from thumbnails (N, 8, 9, 3) to points whose distance is at most the RMS difference, up to rounding.

    The points are the principal components of `thumbnails`, and the size of what these leave.
    """
    some = thumbnails[:: max(1, len(thumbnails) // 4096)].reshape(-1, thumbnails[0].size).astype(np.float32)
    mean = some.mean(axis=0)
    _, axes = np.linalg.eigh((some - mean).T @ (some - mean))
    axes = axes[:, -DIMENSIONS:]

    def project(images: np.ndarray) -> np.ndarray:
        points = np.empty((len(images), axes.shape[1] + 1), dtype=np.float32)
        for start in range(0, len(images), ROWS_AT_A_TIME):
            part = slice(start, start + ROWS_AT_A_TIME)
            values = images[part].reshape(-1, len(mean)).astype(np.float32) - mean
            points[part, :-1] = values @ axes
            points[part, -1] = np.sqrt(np.maximum(0, (values**2).sum(1) - (points[part, :-1] ** 2).sum(1)))
        return points / np.float32(math.sqrt(len(mean)))

    return project


def _differences(new: np.ndarray, old: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The RMS difference of each pair of thumbnails, float32 (n,)."""
    squares = np.empty(len(i), dtype=np.float32)
    new, old = (thumbnails.reshape(len(thumbnails), -1) for thumbnails in (new, old))
    for start in range(0, len(i), 4096):  # which stay in the processor's cache
        part = slice(start, start + 4096)
        difference = new[i[part]].astype(np.float32)
        difference -= old[j[part]]
        squares[part] = np.einsum("ij,ij->i", difference, difference)
    return np.sqrt(squares / np.float32(new.shape[1]))


def _count_bits(values: np.ndarray) -> np.ndarray:
    """Number of set bits of each uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values)
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)  # numpy 1


def _grey(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails.astype(np.int32) @ np.array([299, 587, 114], dtype=np.int32)


def _has_contrast(thumbnails: np.ndarray) -> np.ndarray:
    return _grey(thumbnails).reshape(len(thumbnails), -1).std(axis=1) > 1000 * MIN_CONTRAST
