"""One picture, one answer: through evaluate, predict, the server, the SageMaker handler and the ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgcls
from imgcls import portable
from imgcls.evaluate import measure
from imgcls.pictures import open_picture
from imgcls.portable.model import softmax
from imgcls.predict import predict
from imgcls.preprocessing import Preprocessing
from imgcls.runs.run import Run
from tests.serve.conftest import serving
from tests.serve.test_inference import Container

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on photographs of many sizes, shapes, formats and modes."""
    root, rng = tmp_path_factory.mktemp("five"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 12)):
        for position, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                small = rng.integers(0, 170, (4, 5, 3), dtype=np.uint8)
                small[..., 2 - position] += 60
                size = (int(rng.integers(30, 130)), int(rng.integers(30, 130)))
                image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
                exif = Image.Exif()
                exif[0x0112] = 1 + number % 8
                file = root / split / name / f"{number:02}"
                if number % 3 == 0:
                    image.save(file.with_suffix(".png"))
                elif number % 3 == 1:
                    image.save(file.with_suffix(".jpg"), quality=80, exif=exif)
                else:
                    image.convert("RGBA").save(file.with_suffix(".webp"), quality=90)
    words = ["data=imagefolder", f"data.root={root}", "data.image_size=32", "data.resize=36", "data.batch_size=8"]
    words += ["model.name=test_resnet", "model.pretrained=false", "optim.lr=3e-3", "trainer.max_epochs=2", "debug=off"]
    words += ["trainer.accelerator=cpu", f"run_dir={root / 'run'}", "data.normalization=dataset"]
    return imgcls.fit(imgcls.compose(words))


def test_one_picture_one_answer(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("fastapi")
    root = Path(run.config.data.root)
    files = [root / row["file"] for row in run.predictions]
    assert len(files) == 36

    _, outputs = measure(run)
    evaluated = softmax(outputs.logits.float().numpy())
    assert np.allclose(evaluated, softmax(np.load(run.folder / "test_logits.npy")), atol=1e-5)

    predict([f"run={run.folder}", "format=jsonl", "top_k=3", "engine=torch", *map(str, files)])
    predicted = np.array([_row(json.loads(line)["classes"]) for line in capsys.readouterr().out.splitlines()])

    with serving(portable.load(run.folder / "model", engine="auto")) as server:
        answers = [server.post(file.read_bytes(), "application/x-image") for file in files]
    served = np.array([_row(answer.json["predictions"][0]["classes"]) for answer in answers])

    container = Container.of(run.folder, tmp_path, monkeypatch, engine="torch")
    handled = np.array(
        [
            _row(json.loads(container.ask(file.read_bytes(), "image/jpeg").body)["predictions"][0]["classes"])
            for file in files
        ]
    )

    session = onnxruntime.InferenceSession(str(run.folder / "model" / "model.onnx"))
    described = json.loads((run.folder / "model" / "model.json").read_text())
    preprocessing = Preprocessing.from_dict(described["preprocessing"])
    pixels = np.stack([preprocessing.pixels(open_picture(file)) for file in files])
    [scores] = session.run(["scores"], {"images": preprocessing.normalise(pixels)})

    ways = {"predict": predicted, "server": served, "handler": handled, "onnx": softmax(scores)}
    assert len(set(evaluated.argmax(axis=1).tolist())) > 1, "this test needs a model that tells pictures apart"
    for name, found in ways.items():
        assert found.shape == evaluated.shape
        assert np.array_equal(found.argmax(axis=1), evaluated.argmax(axis=1)), name
        assert np.abs(found - evaluated).max() < 1e-3, name


def _row(classes: list[dict[str, object]]) -> list[float]:
    """Probabilities in the order of the class names, from an answer in the order of the probabilities."""
    found = {str(one["class"]): float(str(one["probability"])) for one in classes}
    return [found[name] for name in CLASSES]


def test_the_run_says_how_well_its_export_agrees(run: Run) -> None:
    pytest.importorskip("onnxscript")
    parity = json.loads((run.folder / "model" / "model.json").read_text())["parity"]
    assert parity["safetensors"]["pictures"] == parity["onnx"]["pictures"] == 18
    assert parity["onnx"]["agreement"] == 1.0
    assert (
        "Export, onnx against the trained network: same class for 100.00% of 18" in (run.folder / "log.txt").read_text()
    )


def test_export_writes_the_same_model_again(run: Run) -> None:
    from imgcls.export import export

    folder = run.folder / "model"
    before = {name: (folder / name).read_bytes() for name in ("model.safetensors", "model.json")}
    (folder / "model.json").unlink()
    found = export(imgcls.load(run.folder), onnx=False)
    assert found["safetensors"].sound
    assert (folder / "model.safetensors").read_bytes() == before["model.safetensors"]
    again, first = json.loads((folder / "model.json").read_bytes()), json.loads(before["model.json"])
    assert {**again, "parity": None} == {**first, "parity": None}
    assert not (folder / "model.onnx").exists()
    export(imgcls.load(run.folder))
    assert (folder / "model.onnx").exists() == ("onnx" in first["parity"])
