"""The best trial's value is corrected for having been chosen: known from simulated trials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imgcls.sweeps.selection import correct, correction_of


def simulate(truths: list[float], images: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((len(truths), images)) < np.array(truths)[:, None]).astype(float)


def test_of_equal_trials_the_luck_is_taken_back() -> None:
    found = [correct(simulate([0.8] * 40, 200, seed)) for seed in range(20)]
    assert np.mean([correction.value for correction in found]) > 0.84, "the best looks better than it is"
    assert np.mean([correction.expected for correction in found]) == pytest.approx(0.8, abs=0.01)


def test_a_trial_that_is_really_better_keeps_its_value() -> None:
    found = [correct(simulate([0.95, *[0.6] * 20], 200, seed)) for seed in range(20)]
    gaps = [correction.value - correction.expected for correction in found]
    assert np.mean(gaps) == pytest.approx(0.0, abs=0.005)
    assert min(gaps) >= 0


def write_outputs(folder: Path, right: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True)
    predicted = np.where(right > 0, labels, 1 - labels)
    np.save(folder / "val_logits.npy", np.eye(2, dtype=np.float32)[predicted] * 3)
    np.save(folder / "val_labels.npy", labels)


def test_the_stored_outputs_of_trials_and_of_folds(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, 90)
    scores = simulate([0.7] * 5, 90, 0)
    folders = [tmp_path / str(number) for number in range(5)]
    for folder, right in zip(folders, scores, strict=True):
        write_outputs(folder, right, labels)
    found = correction_of(folders, "val/accuracy")
    assert found is not None
    assert (found.trials, found.images, found.value) == (5, 90, scores.mean(axis=1).max())
    assert "The best of 5 trials on 90 images is too good by about" in found.sentence("val/accuracy")
    loss = correction_of(folders, "val/loss")
    assert loss is not None
    assert loss.expected >= loss.value > 0
    assert correction_of(folders, "val/macro_f1") is None

    folded = [tmp_path / "cv" / str(number) for number in range(5)]
    for folder, right in zip(folded, scores, strict=True):
        for number, part in enumerate(np.array_split(np.arange(90), 3), start=1):
            write_outputs(folder / "folds" / str(number), right[part], labels[part])
    assert correction_of(folded, "val/accuracy") == found

    write_outputs(tmp_path / "other", scores[0], 1 - labels)
    assert correction_of([*folders, tmp_path / "other"], "val/accuracy") is None, "they saw other images"
