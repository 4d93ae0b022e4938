"""Runs whose models know unknown images, and those whose do not."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import imgcls
from imgcls.errors import UserError
from imgcls.export import export
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.portable import NOVELTY
from tests.trainings import DIGITS


def test_a_frozen_backbone_knows_unknown_images_without_being_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "backbone.safetensors"
    save_file(create_network("test_resnet", 3).backbone.state_dict(), weights)
    frozen = [*DIGITS, "model.freeze=backbone", f"model.weights={weights}", "report=false"]
    run = imgcls.fit(imgcls.compose([*frozen, f"run_dir={tmp_path / 'run'}"]))
    log = (run.folder / "log.txt").read_text()
    assert len(re.findall(r"features of [\d,]+ images", log)) == 3, "each split once"
    model = run.folder / "model"
    found = json.loads((model / "model.json").read_text())["novelty"]
    assert found["share"] == 0.95
    assert found["test"] == pytest.approx(0.95, abs=0.05)
    calibration = json.loads((model / "model.json").read_text())["calibration"]
    low, high = calibration["interval"]
    assert 0 <= low < high < 0.5, "of the calibration error of the exported model"
    noise = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    assert [answer.known for answer in run.predict(list(noise))] == [False] * 8
    assert "of the test images" in (model / "README.md").read_text()

    said = logging.StreamHandler(io.StringIO())
    logging.getLogger("lightning.pytorch").addHandler(said)
    export(run, onnx=False)
    logging.getLogger("lightning.pytorch").removeHandler(said)
    assert said.stream.getvalue() == "", "Lightning's own words"
    assert json.loads((model / "model.json").read_text())["novelty"] == found, "as at the end of the run"
    export(run, onnx=False, known=False)
    assert "novelty" not in json.loads((model / "model.json").read_text())
    assert not (model / NOVELTY).exists()
    with pytest.raises(UserError, match=r"known=0\.95"):
        imgcls.load(run.folder).model.novelty(list(noise))
    export(run, onnx=False, known=0.9995)
    assert "needs 1999 images" in caplog.text
    assert not (model / NOVELTY).exists()


def test_a_fine_tuned_network_sees_the_decoded_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    original = Preprocessing.open
    monkeypatch.setattr(Preprocessing, "open", lambda self, picture: opened.append(picture) or original(self, picture))
    quick = ["trainer.max_epochs=1", "report=false", f"run_dir={tmp_path / 'run'}"]
    run = imgcls.fit(imgcls.compose([*DIGITS, *quick, "export.known=0.9"]))
    found = json.loads((run.folder / "model" / "model.json").read_text())["novelty"]
    assert found["test"] == pytest.approx(0.9, abs=0.1)
    assert found["images"] < 200, "of the validation: the network has seen the training images"
    train = 1797 - found["images"] - len(run.predictions)
    assert len(opened) < train + 100, "whose pixels are stored for augmentation; of the others a few samples"
