"""A frozen backbone runs once: with the same numbers, a complete model, and features shared by runs."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import imgcls
from imgcls.data.stores.features import FeatureStore, build_features, open_features
from imgcls.errors import UserError
from imgcls.evaluate import evaluate
from imgcls.models.backbones import create_network
from imgcls.models.network import Network
from imgcls.training.frozen_backbone import backbone_key
from tests.trainings import Fit, stopped_at

SHAPE = (2, 5, 3)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights of a backbone, as if pretrained."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file = tmp_path / "backbone.safetensors"
    save_file(create_network("test_resnet", 3).backbone.state_dict(), file)
    return file


@pytest.fixture
def fit(fit: Fit, weights: Path) -> Fit:
    """The small training of a head alone, for one epoch more."""
    frozen = ("trainer.max_epochs=4", f"model.weights={weights}", "model.freeze=backbone")
    return functools.partial(fit, *frozen)


CHECKED = [7, 7]
"""The validation images through the trained and the exported network, which the export compares."""


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each call of a backbone, except the trial call when it is built."""
    counts: list[int] = []
    original = Network.features

    def features(self: Network, images: torch.Tensor) -> torch.Tensor:
        if images.any():
            counts.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Network, "features", features)
    return counts


def test_the_backbone_runs_once_and_the_numbers_stay_the_same(fit: Fit, passes: list[int], own_cache: Path) -> None:
    once = fit(name="once")
    assert once.metrics["feature_vectors_per_second"] > 0
    assert "images_per_second" not in once.metrics, "no image was trained on"
    augmented = once.folder / "report_data" / "augmented.json"
    assert json.loads(augmented.read_text()) == {}, "nor was one augmented"
    assert sum(passes) == 72 + 24 + sum(CHECKED), "each image of train, val and test once"
    passes.clear()
    fit("optim.lr=0.01", name="another_trial")
    assert passes == CHECKED, "the next run finds the features"
    assert len(list((own_cache / "features").glob("*/features.json"))) == 3
    usual = fit("model.feature_views=null", "augment=none", name="usual")
    assert sum(passes) > 4 * 60
    for row, reference in zip(once.history, usual.history, strict=True):
        for name in ("train/loss", "val/loss", "val/accuracy"):
            assert row[name] == pytest.approx(reference[name], abs=1e-4), name
    assert once.metrics["test/loss"] == pytest.approx(usual.metrics["test/loss"], abs=1e-4)


@pytest.mark.parametrize("views", ["one", "flip"])
def test_the_result_is_a_complete_model(views: str, fit: Fit, pictures: Path) -> None:
    run = fit(f"model.views={views}")
    assert evaluate(run)["loss"] == pytest.approx(run.metrics["test/loss"], abs=1e-4)
    answers = run.predict([pictures / row["file"] for row in run.predictions], top_k=1)
    assert [answer[0][0] for answer in answers] == [row["predicted"] for row in run.predictions]
    description = json.loads((run.folder / "model" / "model.json").read_text())
    assert description["architecture"]["name"] == "test_resnet"


def test_views_take_turns(fit: Fit, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    fit("model.feature_views=3", "trainer.max_epochs=5", name="views")
    train = 72 - round(72 * 0.1)
    plain = train  # without augmentation, by which unknown images are told
    assert sum(passes) == pytest.approx(3 * train + plain + 24 + 72 - train + sum(CHECKED), abs=3)
    store = FeatureStore(np.arange(24, dtype=np.float32).reshape(2, 4, 3))
    first, second, third = (store.gather(torch.tensor([3, 0]), epoch) for epoch in range(3))
    assert first.tolist() == [[9, 10, 11], [0, 1, 2]]
    assert second.tolist() == [[21, 22, 23], [12, 13, 14]]
    assert torch.equal(first, third)


def test_a_stopped_run_resumes_to_the_same_bits(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("model.feature_views=2", "optim.ema=0.9")
    whole = fit(*options, name="whole")
    with stopped_at(monkeypatch, batch=5):
        fit(*options, name="stopped")
    resumed = fit(*options, name="stopped")
    assert (resumed.folder / "model" / "model.safetensors").read_bytes() == (
        whole.folder / "model" / "model.safetensors"
    ).read_bytes()
    assert resumed.metrics["val/loss"] == whole.metrics["val/loss"]


def test_other_weights_have_other_features() -> None:
    torch.manual_seed(0)
    one, other = create_network("test_resnet", 3), create_network("test_resnet", 3)
    assert backbone_key(one) != backbone_key(other)
    other.backbone.load_state_dict(one.backbone.state_dict())
    assert backbone_key(one) == backbone_key(other), "the head does not count"
    next(iter(other.backbone.buffers())).add_(1)
    assert backbone_key(one) != backbone_key(other), "the statistics of batch norms count"


def test_mixing_needs_images(tmp_path: Path) -> None:
    overrides = ["model.freeze=backbone", "data.augment.mixing.mixup=0.2", "data=cifar10"]
    with pytest.raises(UserError, match=r"model\.feature_views=null"):
        imgcls.compose(overrides)
    imgcls.compose([*overrides, "model.feature_views=null"])


def parts() -> Iterator[np.ndarray]:
    yield np.zeros((6, 3), dtype=np.float32)
    yield np.ones((4, 3), dtype=np.float32)


def test_features_are_computed_once_and_stored_only_if_complete(tmp_path: Path) -> None:
    folder = tmp_path / "features" / "one"
    with pytest.raises(ValueError, match="6 features for 10 rows"):
        build_features(folder, SHAPE, lambda: [next(parts())])
    assert open_features(folder, SHAPE) is None
    built = build_features(folder, SHAPE, parts)
    again = build_features(folder, SHAPE, lambda: pytest.fail("they are there"))
    assert np.array_equal(built.features, again.features)
    assert again.gather(torch.tensor([4]), epoch=1).tolist() == [[1, 1, 1]]
    assert open_features(folder, (2, 5, 4)) is None
    assert sorted(path.name for path in folder.parent.iterdir()) == [".one.lock", "one"]


def _die_while_computing(folder: Path) -> None:
    def dying() -> Iterator[np.ndarray]:
        yield next(parts())
        os._exit(9)

    build_features(folder, SHAPE, dying)


def test_a_killed_computation_leaves_no_features(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    process = multiprocessing.get_context("fork").Process(target=_die_while_computing, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert open_features(folder, SHAPE) is None
    assert build_features(folder, SHAPE, parts).views == 2


def test_features_stay_in_memory_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.data.stores.features.DISK_SHARE", 0.0)
    store = build_features(tmp_path / "one", SHAPE, parts)
    assert store.gather(torch.tensor([0]), epoch=1).tolist() == [[0, 0, 0]]
    assert not (tmp_path / "one").exists()


def test_a_disk_that_fails_meanwhile_costs_no_training(tmp_path: Path) -> None:
    folder = tmp_path / "one"

    def losing() -> Iterator[np.ndarray]:
        yield from parts()
        shutil.rmtree(folder.with_suffix(".partial"), ignore_errors=True)  # before it is renamed

    store = build_features(folder, SHAPE, losing)
    assert store.gather(torch.tensor([4]), epoch=1).tolist() == [[1, 1, 1]]


@pytest.mark.usefixtures("forked_workers")
def test_two_processes_share_features_and_give_the_numbers_of_one(fit: Fit, own_cache: Path) -> None:
    options = ["trainer.max_epochs=2", "optim=sgd", "optim.lr=0.1"]
    one = fit(*options, name="one")
    built = {file: file.stat().st_mtime_ns for file in (own_cache / "features").glob("*/features.npy")}
    two = fit(*options, "trainer.devices=2", name="two")
    assert {file: file.stat().st_mtime_ns for file in (own_cache / "features").glob("*/features.npy")} == built
    for row, reference in zip(two.history, one.history, strict=True):
        for name in ("train/loss", "val/loss", "val/accuracy"):
            assert row[name] == pytest.approx(reference[name], abs=1e-4), name
    assert [row["predicted"] for row in two.predictions] == [row["predicted"] for row in one.predictions]
