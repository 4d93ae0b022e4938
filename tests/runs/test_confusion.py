"""The confusion of a run is a matrix for few classes and a table of pairs for many, and reads the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imgcls.runs.confusion import Confusion, read_confusion

NAMES = ["cat", "=SUM(1)", "'-1+1", 'a, "b"', "Käfer", "two\nlines"]


def made(names: list[str]) -> tuple[Confusion, np.ndarray]:
    """A confusion of 400 images, and its matrix, counted one by one; the last class has no image."""
    dice = np.random.default_rng(0)
    true, predicted = dice.integers(0, len(names) - 1, 400), dice.integers(0, len(names), 400)
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    for row, column in zip(true, predicted, strict=True):
        matrix[row, column] += 1
    return Confusion.of(true, predicted, names), matrix


@pytest.mark.parametrize("dense", [True, False])
def test_what_is_written_is_read(tmp_path: Path, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.runs.confusion.DENSE_CLASSES", 6 if dense else 5)
    confusion, matrix = made(NAMES)
    confusion.write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.csv" if dense else "confusion_pairs.csv"]
    found = read_confusion(tmp_path, NAMES)
    assert np.array_equal(found.dense(), matrix)
    assert (found.images > 0).all()


def test_errors_and_parts_are_those_of_the_matrix() -> None:
    confusion, matrix = made(NAMES)
    errors = confusion.errors()
    assert np.array_equal(errors.dense(), matrix * (1 - np.eye(len(NAMES), dtype=int)))
    some = np.array([1, 2, 4])
    assert np.array_equal(confusion.dense(some), matrix[np.ix_(some, some)])


def test_the_matrix_is_written_as_before(tmp_path: Path) -> None:
    Confusion.of(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 0, 0, 1, 1]), ["cat", "dog"]).write(tmp_path)
    assert (tmp_path / "confusion.csv").read_text() == "label,cat,dog\ncat,3,1\ndog,0,2\n"


def test_many_classes_take_the_memory_of_their_pairs(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(100_000)]  # a matrix of them has 80 GB
    classes = np.arange(0, 100_000, 500)
    Confusion.of(classes, classes + 1, names).write(tmp_path)
    found = read_confusion(tmp_path, names)
    assert np.array_equal(found.true, classes)
    assert (tmp_path / "confusion_pairs.csv").stat().st_size < 10_000
