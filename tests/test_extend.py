"""A class is added to a model that keeps features: the result is a model like any other, the old scores stay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import imgcls
from imgcls import extend as module
from imgcls import portable
from imgcls.images.decoding import open_picture
from imgcls.runs.run import Run
from tests.conftest import DAMAGED_PNG, Command, write_pictures
from tests.trainings import SMALL

HEADS = {"prototype": "one", "knn": "flip"}
"""Each with the views of its model."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a backbone that knows the colours, and a model of each head on top of them, with ONNX."""
    folder = tmp_path_factory.mktemp("trained")
    write_pictures(folder / "pictures", {"train": 24, "test": 8})
    options = [*SMALL, f"data.root={folder / 'pictures'}", "debug=off", "seed=1"]
    imgcls.fit(imgcls.compose([*options, f"run_dir={folder / 'first'}"]))
    for head, views in HEADS.items():
        onnx = [f"head={head}", f"model.views={views}", f"model.weights={folder / 'first'}", "export.onnx=auto"]
        imgcls.fit(imgcls.compose([*options, *onnx, f"run_dir={folder / head}"]))
    return folder


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """Five images of a class that the models do not know, one of them damaged."""
    from PIL import Image

    folder = tmp_path / "grey"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (24, 24), (200 + number,) * 3).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(DAMAGED_PNG)
    return folder


def scores(folder: Path, engine: str, images: list[Path]) -> np.ndarray:
    model = portable.load(folder, engine)
    pixels = np.stack([model.preprocessing.pixels(open_picture(image)) for image in images])
    return model.engine.outputs(model.preprocessing.normalise(pixels))


@pytest.mark.parametrize("head", HEADS)
def test_the_new_class_is_known_and_the_others_keep_their_scores(
    head: str, trained: Path, grey: Path, tmp_path: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("imgcls.portable.extension.export_onnx", lambda *_: pytest.fail("the whole graph is written"))
    run_folder, once, twice = trained / head, tmp_path / "once", tmp_path / "twice"
    assert Run(run_folder).metrics["test/accuracy"] > 0.9
    assert run_command(module, f"run={run_folder}", "class=grey", f"output={once}", grey) == 0
    assert run_command(module, f"run={once}", "class=grey 2", f"output={twice}", grey / "0.png") == 0
    tests = sorted((trained / "pictures" / "test").rglob("*.png"))
    for engine in ("torch", "onnx"):
        before, after, later = (scores(each, engine, tests) for each in (run_folder / "model", once, twice))
        assert np.array_equal(after[:, :3], before)
        assert np.array_equal(later[:, :4], after)
        model = portable.load(once, engine)
        assert model.class_names == ("cat", "dog", "owl", "grey")
        assert [answer.label for answer in model.top([grey / "1.png", grey / "2.png", *tests[::8]], 1)] == [
            *("grey", "grey"),
            *("cat", "dog", "owl"),
        ]
    old, new = (json.loads((each / "model.json").read_text()) for each in (run_folder / "model", twice))
    assert new["calibration"]["temperature"] == old["calibration"]["temperature"]
    assert new["added"] == {"grey": 4, "grey 2": 1}
    assert new["metrics"] == {}
    assert "grey (4 images), grey 2 (1 image). The model was not tested with them" in (twice / "README.md").read_text()


def test_a_scaled_temperature_is_kept(trained: Path, grey: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    source = tmp_path / "source"
    model = portable.load(trained / "prototype" / "model")
    from imgcls.portable.calibration import Calibration

    portable.export(
        model.network,
        preprocessing=model.preprocessing,
        class_names=model.class_names,
        metrics={},
        folder=source,
        calibration=Calibration(2.5, 9, {}),
    )
    assert module.extend(str(source), "grey", [str(grey / "0.png")], tmp_path / "new") == 1
    tests = sorted((trained / "pictures" / "test").rglob("*.png"))
    for engine in ("torch", "onnx"):
        plain = scores(trained / "prototype" / "model", engine, tests)
        plain = plain * json.loads((trained / "prototype/model/model.json").read_text())["calibration"]["temperature"]
        np.testing.assert_allclose(scores(tmp_path / "new", engine, tests)[:, :3] * 2.5, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["class=cat"], "class=cat: the model has this class already. Choose another name."),
        (["run=first", "class=new"], "a head of kind 'linear', which must be trained with all classes"),
        (["class=new", "grey/4.png"], "None of the images can be read: nothing was written."),
        (["class="], "Give a model, a class and its images"),
        (["class=is there", "output="], "is_there exists. Give another folder, or the same to replace it: output=DIR"),
    ],
)
def test_mistakes_leave_nothing(
    arguments: list[str],
    message: str,
    trained: Path,
    grey: Path,
    tmp_path: Path,
    run_command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("first", "prototype"):
        (tmp_path / name).symlink_to(trained / name)
    (tmp_path / "prototype+is_there").mkdir()
    monkeypatch.chdir(tmp_path)
    images = [] if any(word.endswith(".png") for word in arguments) else ["grey"]
    before = sorted(tmp_path.iterdir())
    assert run_command(module, "run=prototype", "output=new", *arguments, *images) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_kill_leaves_the_model_that_was_there(
    trained: Path, grey: Path, tmp_path: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcls.portable import extension

    module.extend(str(trained / "knn"), "grey", [str(grey / "0.png")], tmp_path / "new")
    content = {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(extension, "write_description", killed)
    with pytest.raises(KeyboardInterrupt):
        module.extend(str(tmp_path / "new"), "other", [str(grey / "1.png")], tmp_path / "new")
    assert {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()} == content
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []
