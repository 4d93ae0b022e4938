"""What else exists works with grey images, many channels and rectangles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image

import imgcls
from imgcls.audit.__main__ import audit_run
from imgcls.prepare import prepare, table
from imgcls.runs.run import Run
from tests.conftest import write_pictures
from tests.trainings import SMALL

KINDS = {
    "grey": ["model.in_channels=1"],
    "bands": ["model.in_channels=5", "data.normalization=dataset", "data.image_size=[24,40]", "data.fit=pad"],
}


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short training on images of one kind, whose files know unknown images and can be a teacher."""
    folder = tmp_path_factory.mktemp(request.param)
    root = write_pictures(folder / "pictures", {"train": 20, "test": 8})
    if request.param == "bands":
        for file in root.rglob("*.png"):
            values = np.asarray(Image.open(file))
            np.save(file.with_suffix(".npy"), np.concatenate([values, 255 - values[..., :2]], axis=2))
            file.unlink()
    return train(folder, "first", *KINDS[request.param], "export.known=0.9", "trainer.max_epochs=1")


def train(folder: Path, name: str, *overrides: str) -> Run:
    options = [*SMALL, f"data.root={folder / 'pictures'}", "data.val_fraction=0.3", "debug=off", "optim.lr=3e-3"]
    return imgcls.fit(imgcls.compose([*options, *overrides, f"run_dir={folder / name}"]))


def kind(run: Run) -> str:
    """The key in KINDS of the images of `run`."""
    return run.folder.parent.name.rstrip("0123456789")


def more(run: Run, name: str, *overrides: str) -> Run:
    """A training with the same images, and the weights of `run` as its start."""
    return train(run.folder.parent, name, *KINDS[kind(run)], f"model.weights={run.folder}", *overrides)


def test_a_fine_tuned_network_knows_unknown_images(run: Run) -> None:
    found = json.loads((run.folder / "model" / "model.json").read_text())["novelty"]
    assert found["share"] == 0.9
    assert found["test"] > 0.5


def test_the_report_of_a_frozen_backbone(run: Run) -> None:
    frozen = more(run, "frozen", "model.freeze=backbone", "report=true")
    log = (frozen.folder / "log.txt").read_text()
    assert "could not be" not in log
    assert "no similar training images" not in log
    assert (frozen.folder / "audit.csv").is_file(), "of stored features, at the end of the training"
    assert (frozen.folder / "report_data" / "neighbours.json").is_file()
    assert "could not be created" not in (frozen.folder / "report.html").read_text()
    assert len(frozen.predictions) == 24


def test_the_audit_of_a_run(run: Run) -> None:
    found = audit_run(run)
    assert len((run.folder / "audit.csv").read_text().splitlines()) == 1 + 3 * (20 + 8)
    assert not found.copies


def test_what_is_printed_before_a_training(run: Run) -> None:
    cfg = imgcls.compose([*KINDS[kind(run)], "data=imagefolder", f"data.root={run.folder.parent / 'pictures'}"])
    found = prepare(instantiate(cfg.data, _convert_="all"))
    assert len(found.mean) == len(found.std) == cfg.model.in_channels
    assert f"mean        {found.mean[0]:.4f}" in table(found)


def test_few_images_and_a_class_that_is_added(run: Run) -> None:
    from imgcls.extend import extend

    kept = more(run, "prototype", "head=prototype")
    files = sorted((run.folder.parent / "pictures" / "test" / "owl").iterdir())[:2]
    assert extend(str(kept.folder), "new", [str(file) for file in files], run.folder.parent / "new") == 2
    model = imgcls.portable.load(run.folder.parent / "new")
    assert model.class_names == ("cat", "dog", "owl", "new")
    assert model.embed([str(file) for file in files]).shape == (2, model.network.num_features)


def test_a_teacher_and_images_without_labels(run: Run) -> None:
    plain = run.folder.parent / "unlabelled"
    shutil.copytree(run.folder.parent / "pictures" / "test" / "cat", plain)
    options = [f"loss.teacher={run.folder}", "loss.teacher_views=1", f"data.unlabeled={plain}", "trainer.max_epochs=1"]
    assert np.isfinite(more(run, "student", *options).metrics["test/loss"])


def test_folds_and_their_ensemble(run: Run) -> None:
    folds = more(run, "folds", "model.freeze=backbone", "cv.folds=2", "cv.ensemble=true")
    rows = (folds.folder / "out_of_fold.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 20
    assert (folds.folder / "model" / "model.safetensors").is_file()
