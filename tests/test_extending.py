"""docs/extending.md: one training with the page's data set, head, rule and launcher, and its model used afterwards."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import imgcls
from imgcls import portable
from imgcls.errors import UserError
from imgcls.models import heads
from imgcls.portable import certificate, formats
from imgcls.portable.conversion import Conversions
from tests.conftest import write_pictures
from tests.documents import blocks, commands, run_here

MODULES = ("named", "cosine", "guessing", "elsewhere", "programs")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files, and images named as its data set wants them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in blocks():
        if block.page == "docs/extending.md" and block.file is not None:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text)
    tree = write_pictures(tmp_path / "tree", {"all": 20}, ("beagle", "great_dane"))
    (tmp_path / "pictures").mkdir()
    for file in tree.rglob("*.png"):
        Image.open(file).save(tmp_path / "pictures" / f"{file.parent.name}_{file.stem}.jpg", quality=95)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(heads, "HEADS", dict(heads.HEADS))
    return tmp_path


def test_the_examples_train_together(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []

    def run(command: Sequence[str], *, check: bool) -> None:
        """What a cluster would do, in this process."""
        started.append(list(command[:2]))
        assert check
        monkeypatch.setattr(sys, "argv", ["-c", command[-1]])
        exec(command[-2], {})

    monkeypatch.setattr(importlib.import_module("elsewhere"), "subprocess", SimpleNamespace(run=run))
    words = ["data=named", "data.root=pictures", "data.image_size=24", "data.resize=24", "data.val_fraction=0.25"]
    words += ["head=cosine", "model.head.scale=20", "model.pretrained=false", "debug=mine", "debug.profile=false"]
    words += ["debug.rules.Guessing.epochs=1", "trainer.max_epochs=1", "export.onnx=false", "run_dir=runs/cosine"]
    finished = imgcls.fit(imgcls.compose([*words, "launch=elsewhere", "launch.command=[srun,'--gres=gpu:1']"]))

    assert started == [["srun", "--gres=gpu:1"]]
    assert finished.class_names == ["beagle", "great_dane"]
    assert len(finished.predictions) == 8
    assert json.loads((finished.folder / "model" / "model.json").read_text())["architecture"]["head"] == {
        "kind": "cosine",
        "scale": 20,
    }
    rules: Any = json.loads((finished.folder / "debug" / "rules.json").read_text())
    assert "Guessing" in json.dumps(rules)

    _forget_the_head(monkeypatch)
    with pytest.raises(UserError, match="IMGCLS_PLUGINS=MODULE"):
        imgcls.load("runs/cosine").predict("pictures/beagle_000.jpg")
    monkeypatch.setenv("IMGCLS_PLUGINS", "cosines")
    with pytest.raises(UserError, match="IMGCLS_PLUGINS=cosines"):
        imgcls.load("runs/cosine").predict("pictures/beagle_000.jpg")

    predict = next(one for one in commands() if one.page == "docs/extending.md" and one.module == "predict")
    Image.open("pictures/beagle_000.jpg").save("picture.jpg")
    capsys.readouterr()
    assert run_here(predict, monkeypatch) in (0, None)
    assert "beagle" in capsys.readouterr().out


def test_the_format_writes_what_answers_like_the_network(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.portable.test_portable import NAMES, PIXELS, SHAPE, build

    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))
    monkeypatch.setattr(certificate, "SECONDS", 0.0)
    portable.export(build(), preprocessing=SHAPE, class_names=NAMES, metrics={}, folder=project / "model", onnx=False)
    model = portable.load(project / "model")
    images = SHAPE.normalise(PIXELS)
    labels = model.engine.outputs(images).argmax(axis=1)
    conversions = Conversions(project / "model", model, images, lambda: [(images, labels)])
    with pytest.raises(UserError, match=r"format=program: .*IMGCLS_PLUGINS"):
        conversions.convert("program", "fp32", project / "program")
    monkeypatch.setenv("IMGCLS_PLUGINS", "programs")
    assert conversions.convert("program", "fp32", project / "program").certificate.difference < 1e-5
    assert portable.load(project / "program").engine.name == "torch.export"


def _forget_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a command that knows nothing of the configuration."""
    monkeypatch.delitem(heads.HEADS, "cosine")
    monkeypatch.delitem(sys.modules, "cosine")


def test_the_rule_tells_guessing_from_learning(project: Path) -> None:
    from guessing import Guessing  # type: ignore[import-not-found]

    from imgcls.debug.observations import Record
    from imgcls.debug.rules import ISSUES, NO_ISSUES

    def record(*accuracies: float) -> Record:
        return Record(history=tuple({"val/accuracy": value} for value in accuracies), class_counts=(60, 40))

    assert Guessing().check(record(0.5, 0.6, 0.6)).status == ISSUES
    assert Guessing().check(record(0.5, 0.7, 0.6)).status == NO_ISSUES
    assert Guessing().check(record(0.5, 0.5)).status == NO_ISSUES
