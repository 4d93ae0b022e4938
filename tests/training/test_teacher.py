"""A student learns what its teacher knows, from answers that are computed once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imgcls
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.evaluate import evaluate
from imgcls.launch.sagemaker.options import check_job
from imgcls.models.network import Network
from imgcls.runs.run import Run
from imgcls.training.build import build_data
from imgcls.training.devices import choose_devices
from imgcls.training.teacher import add_teacher
from tests.conftest import write_pictures
from tests.trainings import SMALL, Fit, stopped_at


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run at 32 px that tells the three classes apart."""
    folder = tmp_path_factory.mktemp("teacher")
    root = write_pictures(folder / "pictures", {"train": 24, "test": 8})
    options = ["data.image_size=32", "data.resize=32", "trainer.max_epochs=8", "augment=none", f"data.root={root}"]
    run = imgcls.fit(imgcls.compose([*SMALL, *options, f"run_dir={folder / 'run'}"]))
    assert run.metrics["test/accuracy"] > 0.9
    return run


def taught(teacher: Path, pictures: Path, *overrides: str) -> ImageDataModule:
    """The images of the small training with the answers of `teacher`."""
    cfg = imgcls.compose([*SMALL, f"data.root={pictures}", f"loss.teacher={teacher}", *overrides])
    devices = choose_devices("cpu", 1, 1)
    images = build_data(cfg, devices)
    images.setup(None)
    add_teacher(cfg, images, devices)
    return images


def shuffle_labels(pictures: Path) -> Path:
    """Give each class a third of the training images of each."""
    files = sorted((pictures / "train").glob("*/*.png"))
    contents = [file.read_bytes() for file in files]
    for number, file in enumerate(files):
        file.write_bytes(contents[(number % 3) * 24 + number // 3])
    return pictures


def test_a_student_learns_from_its_teacher_what_the_labels_do_not_say(fit: Fit, pictures: Path, teacher: Run) -> None:
    shuffle_labels(pictures)
    options = ("trainer.max_epochs=10", "augment=none", "data.val_fraction=0")
    alone = fit(*options, name="alone")
    student = fit(*options, f"loss.teacher={teacher.folder}", "loss.teacher_share=1", name="student")
    assert alone.metrics["test/accuracy"] < 0.7
    assert student.metrics["test/accuracy"] > 0.9
    assert student.history[-1]["train/accuracy"] < 0.7, "which is that of the labels"


def test_images_without_labels_are_learnt_from(fit: Fit, pictures: Path, teacher: Run, tmp_path: Path) -> None:
    more = tmp_path / "more" / "inside"
    more.mkdir(parents=True)
    for number, file in enumerate(sorted((pictures / "train").glob("*/*.png"))):
        if number % 24 > 2:
            shutil.move(file, more / f"{number}.png")
    (more / "broken.png").write_bytes(b"no image")
    options = (f"loss.teacher={teacher.folder}", "trainer.max_epochs=10", "augment=none", "data.val_fraction=0")
    student = fit(*options, f"data.unlabeled={more.parent}", "data.batch_size=8", name="student")
    assert student.metrics["test/accuracy"] > 0.9
    assert student.history[-1]["train/accuracy"] > 0.9
    shutil.rmtree(more)
    assert evaluate(student, checkpoint="last")["accuracy"] == pytest.approx(student.metrics["test/accuracy"])
    images = json.loads((student.folder / "data.json").read_text())["splits"]["train"]
    assert images[0] == 9 + 63
    assert "broken.png" in (student.folder / "bad_files.csv").read_text()


def test_the_class_that_the_teacher_takes_an_image_for_is_no_label(pictures: Path, teacher: Run) -> None:
    images = taught(teacher.folder, pictures, f"data.unlabeled={pictures / 'test'}", "data.augment.mixing.mixup=0")
    train = images.source.train
    assert [len(train), sum(name.startswith("unlabeled/") for name in train.names)] == [65 + 24, 24]
    right = [
        name.split("/")[1] == images.class_names[label] for name, label in zip(train.names, train.labels, strict=True)
    ]
    assert sum(right[65:]) > 20, "counts of classes and the solved head use the teacher's answers"
    loader: Any = images.train_dataloader()
    for batch in loader:
        labelled = batch.index < 65
        assert batch.labels[:, :3].sum(1).tolist() == labelled.float().tolist()
        assert torch.allclose(batch.labels[:, 3:].sum(1), torch.ones(len(labelled)))


@pytest.mark.parametrize(
    "augmentation", [[], ["augment=none", "data.augment.per_image=[{_target_: torchvision.transforms.RandomInvert}]"]]
)
def test_the_teacher_sees_the_view_of_the_student(augmentation: list[str], pictures: Path, teacher: Run) -> None:
    same_size = ["data.image_size=32", "data.resize=32"]
    images = taught(teacher.folder, pictures, "loss.teacher_views=2", *same_size, *augmentation)
    network, temperature = teacher.model.network, teacher.model.description["calibration"]["temperature"]
    loader: Any = images.train_dataloader()
    views = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        [*batches] = loader
        for batch in batches:
            with torch.inference_mode():
                answers = (network(batch.images) / temperature / 2).softmax(1)
            assert torch.allclose(batch.labels[:, 3:], answers, atol=1e-4)
            own = torch.from_numpy(images.source.train.labels)[batch.index]
            assert batch.labels[:, :3].argmax(1).tolist() == own.tolist()
        order = torch.cat([batch.index for batch in batches]).argsort()[:20]
        views.append(torch.cat([batch.images for batch in batches])[order].mean((1, 2, 3)))
    assert not torch.allclose(views[0], views[1])


def test_the_teacher_sees_its_own_size_and_its_classes_are_matched_by_name(
    pictures: Path, teacher: Run, tmp_path: Path
) -> None:
    other = tmp_path / "model"
    shutil.copytree(teacher.model_folder, other)
    description = json.loads((other / "model.json").read_text())
    description["class_names"] = ["owl", "cat", "dog"]
    (other / "model.json").write_text(json.dumps(description))
    logits = []
    for folder in (teacher.folder, other):
        images = taught(folder, pictures, "loss.teacher_views=0")
        assert images.teacher is not None
        logits.append(np.array(images.teacher.logits.features[0]))
    assert images.image_size == 24
    pixels = teacher.model.preprocessing.pixels(images.source.train.open(5))
    assert pixels.shape == (32, 32, 3)
    scores = teacher.model.engine.outputs(teacher.model.preprocessing.normalise(pixels[None]))[0]
    assert logits[0][5] == pytest.approx(scores, abs=1e-4)
    assert logits[1] == pytest.approx(logits[0][:, [1, 2, 0]])


def test_answers_are_computed_once(pictures: Path, teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    images = taught(teacher.folder, pictures)
    assert images.teacher is not None
    assert images.teacher.views == 3, "as many as there are epochs"
    monkeypatch.setattr(Network, "forward", lambda *_: pytest.fail("the teacher was asked again"))
    taught(teacher.folder, pictures, "data.batch_size=8", "loss.teacher_temperature=4", "loss.teacher_share=0.1")


def test_answers_are_mixed_like_labels(pictures: Path, teacher: Run) -> None:
    images = taught(teacher.folder, pictures, "data.augment.mixing.mixup=0.4", "loss.teacher_views=0")
    assert images.teacher is not None
    plain = (torch.from_numpy(np.array(images.teacher.logits.features[0])) / 2).softmax(1)
    batch: Any = next(iter(images.train_dataloader()))
    own, answers = batch.labels.chunk(2, dim=1)
    assert torch.allclose(batch.labels.sum(1), torch.full((16,), 2.0))
    share = own.gather(1, torch.from_numpy(images.source.train.labels)[batch.index][:, None])
    assert (share < 0.99).any()
    before, other = plain[batch.index], plain[batch.index].roll(1, 0)
    different = torch.from_numpy(images.source.train.labels)[batch.index] != torch.from_numpy(
        images.source.train.labels
    )[batch.index].roll(1, 0)
    assert torch.allclose(answers[different], other.lerp(before, share)[different], atol=1e-4)


def test_a_stopped_run_resumes_to_the_same_bits_and_with_no_other_teacher(
    fit: Fit, pictures: Path, teacher: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "teacher"
    shutil.copytree(teacher.model_folder, own)
    options = (f"loss.teacher={own}", "loss.teacher_views=2", f"data.unlabeled={pictures / 'test'}")
    whole = fit(*options, name="whole")
    with stopped_at(monkeypatch, batch=8):
        fit(*options, name="stopped")
    description = json.loads((own / "model.json").read_text())
    warmer = {**description, "calibration": {**description["calibration"], "temperature": 9.0}}
    (own / "model.json").write_text(json.dumps(warmer))
    with pytest.raises(UserError, match=r"loss\.teacher was another model"):
        fit(*options, name="stopped")
    (own / "model.json").write_text(json.dumps(description))
    resumed = fit(*options, name="stopped")
    assert (resumed.folder / "model" / "model.safetensors").read_bytes() == (
        whole.folder / "model" / "model.safetensors"
    ).read_bytes()


@pytest.mark.usefixtures("forked_workers")
def test_two_processes_give_the_numbers_of_one(fit: Fit, teacher: Run) -> None:
    options = (f"loss.teacher={teacher.folder}", "trainer.max_epochs=2", "optim=sgd", "optim.lr=0.01")
    options = (*options, "model.batch_norm=frozen")
    one = fit(*options, name="one")
    two = fit(*options, "trainer.devices=2", name="two")
    for row, reference in zip(two.history, one.history, strict=True):
        assert row["train/loss"] == pytest.approx(reference["train/loss"], rel=1e-3)


def test_a_teacher_sees_colours_where_its_student_sees_grey(fit: Fit, teacher: Run) -> None:
    student = fit(f"loss.teacher={teacher.folder}", "model.in_channels=1", "trainer.max_epochs=1")
    assert student.model.preprocessing.channels == 1
    assert np.isfinite(student.metrics["test/loss"])


def test_other_classes_are_refused(teacher: Run, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", {"train": 6, "test": 2}, classes=("cat", "cow", "dog"))
    with pytest.raises(UserError, match="it lacks 'cow'; it also has 'owl'"):
        taught(teacher.folder, other)


def test_what_a_teacher_does_not_fit_is_refused(pictures: Path, teacher: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="neither a finished run nor a portable model"):
        taught(empty, pictures)
    with pytest.raises(UserError, match="no images in this folder"):
        taught(teacher.folder, pictures, f"data.unlabeled={empty}")
    for overrides, message in (
        ([f"data.unlabeled={empty}"], "need a teacher"),
        ([f"loss.teacher={empty}", "task=multilabel"], "one label each"),
        ([f"loss.teacher={empty}", "model.freeze=backbone", "model.pretrained=true"], r"model\.feature_views=null"),
        (["loss.teacher=s3://bucket/run"], "a folder on this machine"),
        ([f"loss.teacher={empty / 'none'}"], "no such folder"),
    ):
        with pytest.raises(UserError, match=message):
            imgcls.compose([*SMALL, f"data.root={pictures}", *overrides])
    job: Any = imgcls.compose([*SMALL, f"data.root={pictures}", f"loss.teacher={empty}", "launch=sagemaker"])
    with pytest.raises(UserError, match="Train with a teacher on this machine"):
        check_job(job)
