"""The same answer for an image from evaluate, predict, the server, the SageMaker handler and the ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgcls
from imgcls import portable
from imgcls.evaluate import measure
from imgcls.images.decoding import open_picture
from imgcls.images.preprocessing import Preprocessing
from imgcls.portable.description import temperature_of
from imgcls.portable.model import softmax
from imgcls.predict import predict
from imgcls.runs.run import Run
from tests.serve.conftest import serving
from tests.serve.test_inference import start_container
from tests.trainings import SMALL

CLASSES = ("blue", "green", "red")


FITS = {"crop": [], "pad": ["data.fit=pad", "data.image_size=[32,48]", "data.pad_colour=[9,99,200]"]}


@pytest.fixture(scope="module", params=FITS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on images of many sizes, formats and modes."""
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
    overrides = [*SMALL, f"data.root={root}", "data.image_size=32", "data.resize=36", "data.batch_size=8"]
    overrides += [
        "debug=off",
        "optim.lr=3e-3",
        "trainer.max_epochs=2",
        "data.normalization=dataset",
        *FITS[request.param],
        "export.known=0.7",
    ]
    return imgcls.fit(imgcls.compose([*overrides, "export.onnx=auto", f"run_dir={root / 'run'}"]))


def test_all_ways_give_the_same_answer(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("fastapi")
    root = Path(run.config.data.root)
    files = [root / row["file"] for row in run.predictions]
    assert len(files) == 36

    _, outputs = measure(run)
    logits = outputs.logits.float().numpy()
    assert np.allclose(softmax(logits), softmax(np.load(run.folder / "test_logits.npy")), atol=1e-5)
    description = json.loads((run.folder / "model" / "model.json").read_text())
    evaluated = softmax(logits / temperature_of(description))

    predict([f"run={run.folder}", "format=jsonl", "top_k=3", "engine=torch", *map(str, files)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    predicted = np.array([_row(line["classes"]) for line in lines])

    with serving(portable.load(run.folder / "model", engine="auto")) as server:
        answers = [server.post(file.read_bytes()).json["predictions"][0] for file in files]
        table = server.post(files[0].read_bytes(), path="?top_k=1", Accept="text/csv").body.decode().splitlines()
        asked = imgcls.Client(server.url).predict_one(files[0])
        counted = server.ask("GET", "/metrics").body.decode()
    served = np.array([_row(answer["classes"]) for answer in answers])

    ask = start_container(run.folder, tmp_path, monkeypatch, engine="torch")
    bodies = [json.loads(ask(file.read_bytes(), "image/jpeg").body)["predictions"][0] for file in files]
    handled = np.array([_row(body["classes"]) for body in bodies])

    session = onnxruntime.InferenceSession(str(run.folder / "model" / "model.onnx"))
    preprocessing = Preprocessing.from_dict(description["preprocessing"])
    pixels = np.stack([preprocessing.pixels(open_picture(file)) for file in files])
    logits, novelty = session.run(["scores", "novelty"], {"images": preprocessing.normalise(pixels)})

    ways = {"predict": predicted, "server": served, "handler": handled, "onnx": softmax(logits)}
    assert len(set(evaluated.argmax(axis=1).tolist())) > 1, "this test needs a model that predicts several classes"
    for name, probabilities in ways.items():
        assert probabilities.shape == evaluated.shape
        assert np.array_equal(probabilities.argmax(axis=1), evaluated.argmax(axis=1)), name
        assert np.abs(probabilities - evaluated).max() < 1e-3, name

    known = {"predict": lines, "server": answers, "handler": bodies}
    assert 0 < sum(novelty > 1) < 36, "this test needs known images and unknown ones"
    for name, entries in known.items():
        assert np.allclose([entry["novelty"] for entry in entries], novelty, atol=0.01), name
        assert [entry["known"] for entry in entries] == [entry["novelty"] <= 1 for entry in entries], name
    assert np.mean(novelty <= 1) == pytest.approx(description["novelty"]["test"], abs=0.03)
    assert table[0] == "picture,rank,class,index,probability,known,novelty"
    assert table[1].endswith(f",{int(answers[0]['known'])},{answers[0]['novelty']}")
    unknown = sum(not answer["known"] for answer in answers) + (not answers[0]["known"]) * 2  # and by table and client
    assert f"imgcls_unknown_pictures_total {unknown:.1f}" in counted
    assert (asked.known, asked.novelty) == (answers[0]["known"], answers[0]["novelty"])


def _row(classes: list[dict[str, object]]) -> list[float]:
    """Probabilities in the order of the class names, from an answer ordered by probability."""
    by_name = {str(entry["class"]): float(str(entry["probability"])) for entry in classes}
    return [by_name[name] for name in CLASSES]


def test_a_run_records_the_parity_of_its_export(run: Run) -> None:
    pytest.importorskip("onnxscript")
    parity = json.loads((run.folder / "model" / "model.json").read_text())["parity"]
    assert parity["safetensors"]["pictures"] == parity["onnx"]["pictures"] == 18
    assert parity["onnx"]["agreement"] == 1.0
    log = (run.folder / "log.txt").read_text()
    assert "Export, onnx against the trained network: same class for 100.00% of 18" in log


def test_export_rewrites_the_same_model(run: Run) -> None:
    from imgcls.export import export

    folder = run.folder / "model"
    before = {name: (folder / name).read_bytes() for name in ("model.safetensors", "model.json")}
    (folder / "model.json").unlink()
    assert export(imgcls.load(run.folder), onnx=False)["safetensors"].sound
    assert (folder / "model.safetensors").read_bytes() == before["model.safetensors"]
    second, first = json.loads((folder / "model.json").read_bytes()), json.loads(before["model.json"])
    assert {**second, "parity": None} == {**first, "parity": None}
    assert not (folder / "model.onnx").exists()
    export(imgcls.load(run.folder))
    assert (folder / "model.onnx").exists() == ("onnx" in first["parity"])
