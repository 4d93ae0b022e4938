"""A cross-validation: every image is predicted by the model that has not seen it, and the folds resume."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import imgcls
from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.data.table import Table
from imgcls.errors import UserError
from imgcls.evaluate import evaluate
from imgcls.models.backbones import create_network
from imgcls.models.network import Network
from imgcls.portable import load
from imgcls.runs.folds import read_summary
from imgcls.runs.run import Run, print_summary
from imgcls.training import frozen_backbone
from tests.trainings import Fit

FOLDS = ["cv.folds=3", "trainer.max_epochs=2"]


def rows_of(run: Run) -> list[dict[str, str]]:
    with (run.folder / "out_of_fold.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "backbone.safetensors"
    save_file(create_network("test_resnet", 3).backbone.state_dict(), file)
    return file


def test_every_image_is_predicted_by_a_model_that_has_not_seen_it(
    fit: Fit, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*FOLDS, "cv.ensemble=true", "data.normalization=dataset", "report=true", "export.onnx=true")
    folds = [Run(run.folder / "folds" / number) for number in "123"]
    values = [fold.metrics["test/accuracy"] for fold in folds]
    assert run.metrics["test/accuracy"] == pytest.approx(statistics.fmean(values))
    assert run.metrics["test/accuracy_sd"] == pytest.approx(statistics.stdev(values))
    assert next(spread for spread in read_summary(run.folder) if spread.name == "test/accuracy").values == tuple(values)

    rows = rows_of(run)
    assert sorted(row["file"] for row in rows) == sorted(
        path.relative_to(pictures).as_posix() for path in (pictures / "train").glob("*/*")
    )
    for number, fold in enumerate(folds, start=1):
        held_out = [row for row in rows if row["fold"] == str(number)]
        assert len(held_out) == 24
        answers = fold.model.predict([pictures / row["file"] for row in held_out])
        columns = [[float(row[f"p({name})"]) for name in fold.class_names] for row in held_out]
        np.testing.assert_allclose(np.array(columns), answers, atol=2e-5)
    right = statistics.fmean(row["label"] == row["predicted"] for row in rows)
    assert run.metrics["test/accuracy_low"] < right < run.metrics["test/accuracy_high"]

    files = sorted((pictures / "test").glob("*/*"))
    mean = np.mean([fold.model.predict(files) for fold in folds], axis=0)
    np.testing.assert_allclose(run.model.predict(files), mean, atol=1e-5)
    np.testing.assert_allclose(load(run.folder / "model", engine="onnx").predict(files), mean, atol=1e-5)
    assert evaluate(run)["accuracy"] == pytest.approx(run.metrics["ensemble/accuracy"])

    table = Table(pictures, table=run.folder / "out_of_fold.csv", test_fraction=0.0)
    assert [table.class_names[label] for label in table.find().train.labels] == [row["label"] for row in rows]
    print_summary(run)
    printed = capsys.readouterr().out
    mean_accuracy, deviation = 100 * statistics.fmean(values), 100 * statistics.stdev(values)
    assert f"{mean_accuracy:.2f} ± {deviation:.2f} %" in printed
    page = (run.folder / "report.html").read_text()
    assert f"{mean_accuracy:.2f} ± {deviation:.2f} %" in page
    assert "could not be" not in page


def test_a_killed_cross_validation_keeps_finished_folds_and_resumes_the_begun_one(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(*FOLDS, name="whole")
    original = Checkpoints.on_train_epoch_end

    def kill(self: Checkpoints, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        if "folds/2" in self.folder.as_posix():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_epoch_end", kill)
        with pytest.raises(BaseException, match=r".*"):
            fit(*FOLDS, name="killed")
    folders = [Path(str(whole.folder).replace("whole", "killed")) / "folds" / number for number in "123"]
    assert [(folder / "metrics.json").is_file() for folder in folders] == [True, False, False]
    assert len(Run(folders[1]).history) == 1
    finished = (folders[0] / "metrics.json").stat().st_mtime_ns
    resumed = fit(*FOLDS, name="killed")
    assert (folders[0] / "metrics.json").stat().st_mtime_ns == finished, "a finished fold is trained again"
    assert Run(folders[1]).status["resumed"] == 1
    assert rows_of(resumed) == rows_of(whole)


def test_a_frozen_backbone_runs_once_for_all_folds(fit: Fit, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    original = frozen_backbone.build_features
    monkeypatch.setattr(
        frozen_backbone,
        "build_features",
        lambda folder, shape, parts: computed.append(shape[:2]) or original(folder, shape, parts),
    )
    frozen = [f"model.weights={weights}", "model.freeze=backbone", "trainer.max_epochs=${by_start:10,10,30}"]
    run = fit(*frozen, "cv.folds=3", "cv.ensemble=true")
    assert computed == [(1, 72)], "one view of all training images"
    assert isinstance(run.model.network, Network)
    assert run.model.network.architecture.backbones == 1, "the members share the backbone"
    heads = [Run(run.folder / "folds" / number).model.network.head[1].weight for number in "12"]  # type: ignore[index]
    assert not torch.equal(*heads)


def test_without_a_test_the_held_out_images_are_the_validation_images(fit: Fit) -> None:
    run = fit(*FOLDS, "test=false")
    folds = [Run(run.folder / "folds" / number) for number in "123"]
    assert run.metrics["val/accuracy"] == pytest.approx(statistics.fmean(f.metrics["val/accuracy"] for f in folds))
    assert not any(name.startswith("test/") for name in run.metrics)
    assert "24 validation images" in (folds[0].folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cv.ensemble=true"], "cv.folds=5"),
        (["cv.folds=1"], "cv.folds=1"),
        (["cv.folds=3", "data.fold=1/3"], "Leave one of them out"),
        (["cv.folds=3", "trainer.fast_dev_run=true"], "single run"),
        (["data.fold=4/3"], "such as 1/5"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        imgcls.compose(["data=digits", *overrides])


def test_a_cross_validation_without_an_ensemble_names_its_folds(fit: Fit) -> None:
    run = fit("cv.folds=2", "trainer.max_epochs=1")
    with pytest.raises(UserError, match="folds/1"):
        _ = run.model
    assert fit("cv.folds=2", "trainer.max_epochs=1").metrics == run.metrics, "it is finished"
    with pytest.raises(UserError, match=r"cv\.folds"):
        fit("cv.folds=3", "trainer.max_epochs=1")


def test_one_fold_is_an_ordinary_run(fit: Fit) -> None:
    run = fit("data.fold=2/3")
    assert len(run.predictions) == 24
    assert evaluate(run)["accuracy"] == pytest.approx(run.metrics["test/accuracy"])
