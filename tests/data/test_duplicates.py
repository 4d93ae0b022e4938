"""Every near-duplicate is found, and the nearest of them, on whatever background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imgcls.data import duplicates
from imgcls.data.checks import Findings
from imgcls.data.duplicates import difference_hashes, find_duplicates
from imgcls.data.sources import Source, Split


def thumbnails(kind: str, count: int = 400) -> np.ndarray:
    """uint8 (N, 8, 9, 3); objects on white agree in most of their hashes."""
    dice = np.random.default_rng(0)
    images = dice.normal(128, 60, (count, 8, 9, 3))
    if kind != "photographs":
        height, width = dice.integers(2, 5, (count, 1, 1)), dice.integers(2, 5, (count, 1, 1))
        inside = (abs(np.arange(8)[:, None] - 3.5) < height / 2) & (abs(np.arange(9) - 4) < width / 2)
        images = np.where(inside[..., None], images, 255)
    if kind == "mixed":
        images[::2] = dice.normal(128, 60, images[::2].shape)
    images[count // 2 :: 3] = images[: len(images[count // 2 :: 3])] + dice.normal(0, 3, images[0].shape)
    return images.clip(0, 255).astype(np.uint8)


def nearest_of_all(new: np.ndarray, old: np.ndarray) -> dict[int, int]:
    """Every pair compared."""
    bits, old_bits = (
        np.unpackbits(difference_hashes(images).view(np.uint8).reshape(-1, 8), axis=1) for images in (new, old)
    )
    found = {}
    for i, image in enumerate(new):
        differences = np.sqrt(((image.astype(np.float32) - old) ** 2).mean(axis=(1, 2, 3)))
        differences[((bits[i] != old_bits).sum(axis=1) > 7) | (differences > 15)] = np.inf
        if np.isfinite(differences).any():
            found[i] = int(differences.argmin())
    return found


@pytest.mark.parametrize("kind", ["photographs", "objects", "mixed"])
@pytest.mark.parametrize("many", [0, 60, 10**9])
def test_the_nearest_is_found_as_by_comparing_all(kind: str, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MANY_CANDIDATES", many)  # by colour, by both ways, by hash
    monkeypatch.setattr(duplicates, "MANY_OF_ALL", 10**9)
    monkeypatch.setattr(duplicates, "ROWS_AT_A_TIME", 32)
    monkeypatch.setattr(duplicates, "CHUNK_CANDIDATES", 500)
    images = thumbnails(kind)
    new, old = images[200:], images[:200]
    expected = nearest_of_all(new, old)
    assert len(expected) > 30
    assert duplicates._find_nearest(new, old, 2) == expected


def test_of_very_many_near_images_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MANY_CANDIDATES": 0,
        "MANY_OF_ALL": 10**9,
        "FIRST_NEIGHBOURS": 2,
        "ENOUGH_NEIGHBOURS": 2,
    }.items():
        monkeypatch.setattr(duplicates, name, value)
    dice = np.random.default_rng(0)
    images = np.minimum(thumbnails("objects", 20), 240).repeat(40, axis=0)
    images += dice.integers(0, 9, (800, 1, 1, 3), dtype=np.uint8)
    new, old = images[::2], images[1::2]
    found, expected = duplicates._find_nearest(new, old), nearest_of_all(new, old)
    assert found.keys() == expected.keys()
    assert len(found) > 200
    assert found != expected, "the nearest of two is not the nearest of all"
    assert all(((new[i].astype(float) - old[j]) ** 2).mean() <= 15**2 for i, j in found.items())


def test_equal_images_have_the_first_as_their_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MANY_CANDIDATES", 0)
    monkeypatch.setattr(duplicates, "MANY_OF_ALL", 10**9)
    old = np.repeat(thumbnails("photographs", 20), 30, axis=0)
    assert duplicates._find_nearest(old[::30], old) == {row: 30 * row for row in range(20)}


def test_a_result_is_kept_for_the_same_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def data(label: int = 0, change: int = 0) -> tuple[Source, dict[str, Findings]]:
        images = thumbnails("photographs", 60)
        images[:, 0, 0, 0] += np.uint8(change)
        parts = {"train": images[:30], "test": images[30:]}
        findings, splits = {}, {}
        for name, part in parts.items():
            findings[name] = Findings.empty(len(part))
            findings[name].thumbnails[:] = part
            findings[name].digests[:, 0] = np.arange(len(part)) + 100 * (name == "test")
            names = tuple(f"{name}/{number}" for number in range(len(part)))
            splits[name] = Split(names, np.full(len(part), label * (name == "test")), np.zeros((len(part), 1, 1, 3)))
        return Source(("a", "b"), splits["train"], None, splits["test"]), findings

    found = find_duplicates(*data(), tmp_path)
    assert found
    monkeypatch.setattr(duplicates, "_match", lambda *_: pytest.fail("it searched again"))
    assert find_duplicates(*data(), tmp_path) == found
    for other in (data(label=1), data(change=1)):
        with pytest.raises(pytest.fail.Exception):
            find_duplicates(*other, tmp_path)
