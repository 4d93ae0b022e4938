"""The Python interface: what a notebook calls, and what it gets."""

from __future__ import annotations

import csv
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import imgcls
from imgcls.config.overrides import as_overrides
from imgcls.data.augment import Augment
from imgcls.data.imagefolder import ImageFolder
from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture
from imgcls.models.classifier import Classifier
from imgcls.portable import Prediction
from imgcls.predict import UnreadableError, predict
from tests.trainings import SMALL

OPTIONS: dict[str, Any] = {
    "data": "digits",
    "model": {"name": "test_resnet", "pretrained": False},
    "optim": {"lr": 0.1},
    "run_dir": "runs/a b",
    "metrics": {"kappa": {"_target_": "torchmetrics.CohenKappa"}},
    "data.normalization": [[0.5, 0.5, 0.5], [0.2, 0.2, 0.2]],
    "model.weights": None,
}


def test_a_configuration_is_composed_from_a_text_a_list_a_dictionary_or_names() -> None:
    words = ["data=digits", "model.name=test_resnet", "model.pretrained=false", "optim.lr=0.1", "run_dir='runs/a b'"]
    words += ["+metrics.kappa._target_=torchmetrics.CohenKappa", "model.weights=null"]
    words += ["data.normalization=[[0.5,0.5,0.5],[0.2,0.2,0.2]]"]
    expected = imgcls.compose(words)
    assert expected.optim.lr == 0.1
    assert imgcls.compose(OPTIONS) == expected
    assert imgcls.compose(**OPTIONS) == expected
    assert imgcls.compose(words[:3], **{name: OPTIONS[name] for name in list(OPTIONS)[2:]}) == expected
    assert imgcls.compose(data={"augment": {"+extra": []}}).data.augment.extra == []
    assert imgcls.compose("data=digits run_dir='runs/a b'").run_dir == "runs/a b"
    assert imgcls.compose(data={"root": Path("/")}).data.root == "/"
    assert imgcls.compose(model={"options": {"act_layer": "gelu", "depth": 3}}).model.options == {
        "act_layer": "gelu",
        "depth": 3,
    }


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"optim": {"lrr": 0.1}}, "Unknown option 'optim.lrr'. Did you mean optim.lr"),
        ({"data": "digit"}, "Did you mean digits"),
        ({"optim": {"lr": "fast"}}, "optim.lr=fast"),
        ("data=digits optim.lrr=0.1", "optim.lrr"),
    ],
)
def test_a_wrong_option_is_a_line_in_every_form(options: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        imgcls.compose(options)
    with pytest.raises(UserError, match=complaint):
        imgcls.fit(options)
    with pytest.raises(UserError, match=r"this configuration is composed"):
        imgcls.fit(imgcls.compose(), seed=1)


def test_texts_of_any_kind_are_written_as_overrides() -> None:
    texts = ["a", "a b", "x=y", "[1]", "{", 'say "no"', "größe", "1e-3", "true", "", "$x", "a,b", "a\\b"]
    for text in texts:
        cfg = imgcls.compose(callbacks={"mine": {"name": text}})
        found = cfg.callbacks.mine.name
        assert found == (text if text not in ("1e-3", "true") else {"1e-3": 0.001, "true": True}[text]), text
    assert as_overrides([]) == []


@pytest.fixture
def run(pictures: Path, tmp_path: Path) -> imgcls.Run:
    return imgcls.fit([*SMALL, "debug=off"], data={"root": pictures}, run_dir=tmp_path / "run")


def test_a_run_is_measured_exported_and_asked_from_python(
    run: imgcls.Run, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "run_dir" in (run.folder / "overrides.yaml").read_text()
    caplog.set_level(logging.INFO)
    for which in (run, run.folder, str(run.folder)):
        assert imgcls.evaluate(which)["accuracy"] == pytest.approx(run.metrics["test/accuracy"])
    assert not [record for record in caplog.records if record.name.startswith("lightning")]
    assert list(imgcls.export(run.folder, onnx=False)) == ["safetensors"]

    file = next((pictures / "test").rglob("*.png"))
    (answer,) = run.predict(file, top_k=2)
    assert isinstance(answer, Prediction)
    assert (answer.file, answer[0]) == (str(file), (answer.label, answer.probability))
    assert len(answer) == 2
    assert run.predict([Image.open(file)])[0].file is None
    assert [each.label for each in run.predict(str(file))] == [answer.label]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(BadPicture, match=f"{broken}: "):
        run.predict([file, broken])
    with pytest.raises(BadPicture, match="image 2: "):
        run.predict([file, b"no image"])

    folder = pictures / "test"
    (folder / "broken.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        table = run.predict(folder)
    assert "broken.png" in caplog.text
    assert list(table.columns) == ["file", "class", "probability"]
    stored = {row["file"]: row for row in run.predictions}
    assert {f"test/{row.file}" for row in table.itertuples()} == set(stored)
    for file_name, label, probability in table.itertuples(index=False):
        assert label == stored[f"test/{file_name}"]["predicted"]
        assert probability == pytest.approx(float(stored[f"test/{file_name}"]["confidence"]), abs=1e-4)
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    listed = [(each.file, each.label) for each in run.predict(folder)]
    assert listed == list(zip(table["file"], table["class"], strict=True))
    with pytest.raises(UserError, match="no images in this folder"):
        run.predict(run.folder / "checkpoints")

    losses = run.top_losses(5)
    assert [row["loss"] for row in losses] == sorted((float(row["loss"]) for row in run.predictions), reverse=True)[:5]
    assert all(row["correct"] == (row["label"] == row["predicted"]) for row in losses)
    axes = run.plot_confusion().axes[0]
    assert sorted(text.get_text() for text in axes.get_xticklabels()) == sorted(run.class_names)
    assert sum(int(text.get_text()) for text in axes.texts) == len(run.predictions)


def test_predictions_become_a_table_of_a_spreadsheet(
    run: imgcls.Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={run.folder}", "engine=torch", str(pictures / "test")]
    output = tmp_path / "answers.csv"
    predict([*words, "top_k=2", f"output={output}"])
    rows = list(csv.DictReader(output.open()))
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2"]
    assert len(rows) == 24
    assert all(float(row["probability"]) >= float(row["probability_2"]) for row in rows)
    capsys.readouterr()
    predict([*words, "top_k=2", "format=csv"])
    assert capsys.readouterr().out == output.read_text()
    predict([*words, f"output={tmp_path / 'answers.jsonl'}"])
    assert len(json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])["classes"]) == 3

    predict([*words, "top_k=1", "views=flip_shift", f"output={output}"])
    seen = [float(row["probability"]) for row in csv.DictReader(output.open())]
    assert seen != [float(row["probability"]) for row in rows]
    (pictures / "test" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UnreadableError, match="1 of 25"):
        predict([*words, f"output={output}"])
    unread = [row for row in csv.DictReader(output.open()) if not row["class"]]
    assert [Path(row["file"]).name for row in unread] == ["broken.png"]
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match="views= is for run=DIR"):
        predict(["endpoint=http://127.0.0.1:9", "views=flip", *words[2:]])


def test_a_run_of_one_batch_tries_everything_and_exports_nothing(pictures: Path, tmp_path: Path) -> None:
    for plus in ("", "+"):
        tried = imgcls.fit(
            [*SMALL, f"data.root={pictures}", f"run_dir={tmp_path / f'run{plus}'}", f"{plus}trainer.fast_dev_run=true"]
        )
        assert tried.status["state"] == "finished"
        assert (tried.metrics, tried.predictions) == ({}, [])
        assert not (tried.folder / "model").exists()
        assert len(tried.history) <= 1


def test_training_images_are_shown_as_the_model_sees_them(pictures: Path) -> None:
    data = ImageFolder(pictures, image_size=24, resize=24, augment=Augment(flip=1.0))
    figure = data.show_batch(5)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == sorted(titles)
    assert set(titles) == {"cat", "dog", "owl"}
    images, labels = data.training_examples(5)
    assert [data.class_names[label] for label in labels] == titles
    plain, _ = ImageFolder(pictures, image_size=24, resize=24).training_examples(5)
    assert np.array_equal(images, plain[:, :, ::-1])
    assert np.array_equal(figure.axes[0].images[0].get_array(), images[0])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_model_of_timm_is_trained_as_it_is(name: str) -> None:
    model = timm.create_model(name, num_classes=4).eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.get_classifier().weight)
    module = Classifier(model).eval()
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.allclose(module(images), model(images), atol=1e-5)
    assert module.network.architecture.num_classes == 4
    assert len(module.class_names) == 4


def test_another_module_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match="Sequential is no classifier of timm"):
        Classifier(torch.nn.Sequential())
    with pytest.raises(UserError, match="other layers"):
        Classifier(timm.create_model("test_resnet", in_chans=1))
