"""Errors with planted causes get these, and correcting the images gains what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imgcls.audit import causes
from imgcls.audit.causes import assign, find_pairs
from imgcls.audit.findings import Audit
from imgcls.audit.search import audit
from imgcls.audit.tables import as_data, as_table, as_text
from imgcls.audit.worth import Worth
from imgcls.data.checks import Findings
from imgcls.data.sources import Source, Split
from imgcls.data.table import Table
from tests.audit.features import clouds, with_wrong_labels
from tests.conftest import write_pictures

CLASSES = 4
NAMES = tuple("abcd")


def findings_of(count: int, seed: int) -> Findings:
    """As of distinct images of noise, which are all usual."""
    random = np.random.default_rng(seed)
    known = Findings.empty(count)
    known.sizes[:] = 100, 80
    known.digests[:] = random.integers(0, 2**63, (count, 2), dtype=np.uint64)
    known.thumbnails[:] = random.integers(0, 255, known.thumbnails.shape, dtype=np.uint8)
    return known


def split_of(name: str, labels: np.ndarray) -> Split:
    names = tuple(f"{name}/{row:03}.png" for row in range(len(labels)))
    return Split(names, labels, tuple(Path("/images") / name for name in names))


@pytest.fixture(scope="module")
def audited() -> tuple[Audit, np.ndarray]:
    """An audit of 400 training and 100 validation images, a tenth of whose labels is wrong; and the true labels.

    Validation image 0 is a copy of training image 1, and the label of one of them is another one.
    """
    features, true = clouds(500, CLASSES)
    given, _ = with_wrong_labels(true, CLASSES, 0.1)
    known = findings_of(500, 0)
    known.digests[400], known.thumbnails[400] = known.digests[1], known.thumbnails[1]
    features[400] = features[1]
    given[1], given[400] = true[1], (true[1] + 1) % CLASSES
    true[400] = true[1]
    source = Source(NAMES, split_of("train", given[:400]), split_of("val", given[400:]))
    parts = {"train": slice(400), "val": slice(400, 500)}
    findings = {name: Findings(*(column[part] for column in known.columns)) for name, part in parts.items()}
    return audit(source, {name: features.numpy()[part] for name, part in parts.items()}, findings), true


def test_wrong_labels_are_the_cause_and_correcting_them_gains_their_share(audited: tuple[Audit, np.ndarray]) -> None:
    found, true = audited
    assert found.errors is not None
    by_cause = {cause.name: cause for cause in found.errors.by_cause}
    wrong = by_cause[causes.WRONG_LABEL]
    assert len(wrong.errors) >= 0.7 * sum(len(cause.errors) for cause in found.errors.by_cause)
    planted = float((found.given[400:] != true[400:]).mean())
    assert wrong.gain is not None
    assert wrong.gain.gain == pytest.approx(planted, abs=0.03)
    assert wrong.gain.margin < wrong.gain.gain
    assert wrong.gain.images == found.labels.wrong.sum()


def test_the_copy_with_another_label_is_found(audited: tuple[Audit, np.ndarray]) -> None:
    found, _ = audited
    assert [(copy.kind, copy.image, copy.earlier, copy.contradicts) for copy in found.copies] == [
        ("identical", 400, 1, True)
    ]
    assert np.flatnonzero(found.contradictory).tolist() == [1, 400]
    assert "copies      1 of an earlier image, 1 with another label" in as_text(found)


def test_the_report_has_what_was_found(audited: tuple[Audit, np.ndarray]) -> None:
    found, true = audited
    data = as_data(found, thumbnail=str)
    assert data["wrong"]["found"] == found.labels.wrong.sum()
    first = data["wrong"]["pictures"][0]
    place = int(first["image"])
    assert (first["label"], first["predicted"]) == (NAMES[found.given[place]], NAMES[true[place]])
    assert {row["cause"] for row in data["errors"]["causes"]} == {cause.name for cause in found.errors.by_cause}  # type: ignore[union-attr]


def test_every_error_has_the_first_cause_that_applies() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 1, 0, 2, 3, 0])
    wrong_label = np.array([1, 1, 0, 0, 0, 0], dtype=bool)
    poor = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
    found = assign(labels, predicted, [(causes.WRONG_LABEL, wrong_label), (causes.POOR, poor)], {(1, 2)})
    assert found.tolist() == ["", causes.WRONG_LABEL, causes.POOR, causes.PAIR, causes.UNEXPLAINED, causes.UNEXPLAINED]


def test_a_pair_that_is_often_confused_either_way_is_confusable() -> None:
    labels = np.array([0, 1, 0, 1, 2, 5] + [7] * 50)
    predicted = np.array([1, 0, 1, 0, 3, 6] + [7] * 50)
    assert find_pairs(labels, predicted, 10) == {(0, 1)}
    assert find_pairs(labels, labels, 10) == set()


class TestWorth:
    """The gain of corrections whose effect is known."""

    @pytest.fixture
    def data(self) -> tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]:
        return *clouds(120, CLASSES, 1.6), *clouds(400, CLASSES, 1.6, seed=1)

    def test_labels_corrected_in_training(
        self, data: tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]
    ) -> None:
        features, labels, val, val_labels = data
        shifted = np.where(labels == 0, 1, labels)
        shifted[:8] = labels[:8]  # of class 0 two images are left
        found = Worth(features, shifted, val, val_labels, CLASSES, 0.01).relabel(labels, val_labels)
        assert found.gain > found.margin > 0
        assert found.images == (shifted != labels).sum()

    def test_a_label_corrected_in_validation_counts_as_right(
        self, data: tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]
    ) -> None:
        features, labels, val, val_labels = data
        worth = Worth(features, labels, val, val_labels, CLASSES, 0.01)
        error = int(np.flatnonzero(~worth.right)[0])
        corrected = val_labels.copy()
        corrected[error] = worth.predicted[error]
        assert worth.relabel(labels, corrected)[:2] == (1, 1 / 400)

    def test_more_images_of_an_unknown_kind(
        self, data: tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]
    ) -> None:
        features, labels, val, val_labels = data
        rows = np.flatnonzero(val_labels == 2)[:40]
        val[torch.from_numpy(rows)] += 8  # a kind of class 2 that is not among the training images
        worth = Worth(features, labels, val, val_labels, CLASSES, 0.01)
        found = worth.add(rows[~worth.right[rows]])
        assert found.gain > found.margin > 0

    def test_whole_images(self, data: tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]) -> None:
        features, labels, val, val_labels = data
        worth = Worth(features, labels, val, val_labels, CLASSES, 0.01)
        centres = torch.stack([features[labels == label].mean(dim=0) for label in range(CLASSES)])
        gain, right = worth.see_whole(lambda rows: centres[val_labels[rows]])
        assert np.array_equal(right, ~worth.right)
        assert gain.gain == pytest.approx(1 - worth.right.mean())
        unchanged, none = worth.see_whole(lambda rows: val[torch.from_numpy(rows)])
        assert (unchanged.gain, none.sum()) == (0, 0)

    def test_twice_the_images(self, data: tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]) -> None:
        features, labels, val, val_labels = data
        worth = Worth(features[:40], labels[:40], val, val_labels, CLASSES, 0.01)
        assert worth.double(range(CLASSES)).gain > 0.01

    def test_poor_images_left_out(self, data: tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]) -> None:
        features, labels, val, val_labels = data
        worth = Worth(features, labels, val, val_labels, CLASSES, 0.01)
        rows = np.flatnonzero(~worth.right)[:10]
        found = worth.leave_out(np.arange(4), rows)
        assert found.images == 14
        assert 0 < found.gain < 0.06


def test_the_table_is_read_as_a_data_set(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "images", {"train": 20, "val": 5})
    files = {name: tuple(sorted((root / name).rglob("*.png"))) for name in ("train", "val")}
    labels = {name: np.repeat(np.arange(3), len(paths) // 3) for name, paths in files.items()}
    true = labels["train"].copy()
    labels["train"][0] = 1
    splits = {
        name: Split(tuple(path.relative_to(root).as_posix() for path in paths), labels[name], paths)
        for name, paths in files.items()
    }
    source = Source(("cat", "dog", "owl"), splits["train"], splits["val"])
    centres = 4 * torch.eye(3).numpy()
    random = np.random.default_rng(0)
    features = {
        "train": (centres[true] + random.normal(size=(60, 3))).astype(np.float32),
        "val": (centres[labels["val"]] + random.normal(size=(15, 3))).astype(np.float32),
    }
    found = audit(source, features, {name: findings_of(len(paths), 1) for name, paths in files.items()})
    (tmp_path / "audit.csv").write_text(as_table(found, root))
    given = Table(root, table=tmp_path / "audit.csv").source
    assert sorted(given.train.names) == sorted(source.train.names)
    assert given.val is not None
    assert given.val.class_counts(3).tolist() == [5, 5, 5]
    suggested = Table(root, table=tmp_path / "audit.csv", label_column="suggested").source
    changed = {
        name
        for name, one, other in zip(given.train.names, given.train.labels, suggested.train.labels, strict=True)
        if one != other
    }
    assert changed == {source.train.names[0]}
    assert suggested.class_names[suggested.train.labels[suggested.train.names.index(source.train.names[0])]] == "cat"
