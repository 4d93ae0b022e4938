"""The same labels for an image with several from evaluate, predict, the server, the SageMaker handler and ONNX."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imgcls
from imgcls import portable
from imgcls.data.table import Table
from imgcls.errors import UserError
from imgcls.evaluate import measure
from imgcls.images.decoding import open_picture
from imgcls.images.preprocessing import Preprocessing
from imgcls.portable.model import sigmoid
from imgcls.predict import predict
from imgcls.report.page import write_report
from imgcls.report.sections.precision_recall import precision_recall
from imgcls.runs.reading import read_outputs
from imgcls.runs.run import Run
from imgcls.serve import lambda_function
from tests.serve.conftest import serving
from tests.serve.test_inference import Ask, start_container
from tests.trainings import SMALL

NAMES = ("blue", "green", "red")
PLAIN = [word for word in SMALL if word != "data=imagefolder"]


def write(root: Path, count: int) -> Path:
    """Images with a patch of each of their colours, in a table with all ways of writing several labels."""
    rng = np.random.default_rng(0)
    root.mkdir()
    tables = {"labels.csv": ["file;tags"], "flags.csv": [f"file,{','.join(NAMES)}"], "labels.jsonl": []}
    for number in range(count):
        has = rng.random(3) < 0.4
        pixels = rng.integers(60, 120, (40, 40, 3), dtype=np.uint8)
        for place in np.flatnonzero(has):
            y, x = rng.integers(0, 26, 2)
            pixels[y : y + 14, x : x + 14] = 20
            pixels[y : y + 14, x : x + 14, 2 - place] = 255
        name = f"{number:03}.png"
        Image.fromarray(pixels).save(root / name)
        labels = [NAMES[place] for place in np.flatnonzero(has)]
        tables["labels.csv"].append(f"{name};{'|'.join(labels)}")
        tables["flags.csv"].append(",".join([name, *(str(int(value)) for value in has)]))
        tables["labels.jsonl"].append(json.dumps({"file": name, "label": labels}))
    for name, lines in tables.items():
        (root / name).write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = write(tmp_path_factory.mktemp("labels") / "pictures", 120)
    words = [*PLAIN, f"data={root / 'labels.csv'}", "data.label_separator=|", "data.image_size=32", "data.resize=32"]
    words += ["trainer.max_epochs=3", "optim.lr=3e-3", "data.batch_size=8", "debug=off", "export.onnx=auto"]
    return imgcls.fit(imgcls.compose([*words, "data.val_fraction=0.3", f"run_dir={root.parent / 'run'}"]))


def test_all_ways_give_the_same_labels(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("fastapi")
    root = Path(run.config.data.table).parent
    files = [root / row["file"] for row in run.predictions]
    thresholds = np.array(run.model.thresholds)
    assert len(files) == 24
    assert np.ptp(thresholds) > 0

    metrics, outputs = measure(run)
    evaluated = sigmoid(outputs.logits.float().numpy())
    assert metrics["map"] == pytest.approx(run.metrics["test/map"], abs=1e-4)
    assert metrics["macro_f1"] == pytest.approx(run.metrics["test/macro_f1"], abs=1e-4), "by the same thresholds"
    expected = evaluated >= thresholds
    assert 0 < expected.sum() < expected.size
    assert [row["predicted"].split(";") if row["predicted"] else [] for row in run.predictions] == [
        [name for name, has in zip(NAMES, row, strict=True) if has] for row in expected
    ]

    predict([f"run={run.folder}", "format=jsonl", "engine=torch", *map(str, files)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (tmp_path / "predicted.jsonl").write_text("\n".join(map(json.dumps, lines)))
    again = Table(root, table=tmp_path / "predicted.jsonl", test_fraction=0.0, val_fraction=0.0).source
    assert np.array_equal(again.train.labels, expected[:, expected.any(axis=0)]), "what predict writes is a data set"

    with serving(portable.load(run.folder / "model", engine="auto")) as server:
        served = [server.post(file.read_bytes(), "application/x-image").json["predictions"][0] for file in files]
        sent = server.post(files[0].read_bytes(), "application/x-image", Accept="text/csv").body.decode()
        capsys.readouterr()
        predict([f"endpoint={server.url}", "format=jsonl", *map(str, files)])
        asked = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        predict([f"endpoint={server.url}", "format=jsonl", "top_k=1", *map(str, files)])
        likeliest = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        remote = imgcls.Client(server.url).labels(files[0])
    assert [row["above"] for row in csv.DictReader(sent.splitlines())] == [
        str(int(entry["above"])) for entry in served[0]["classes"]
    ]
    for answers in (asked, likeliest):
        assert [line["label"] for line in answers] == [line["label"] for line in lines]
    assert {len(line["classes"]) for line in likeliest} == {1}
    assert sorted(name for name, _ in remote) == sorted(lines[0]["label"])
    ask = start_container(run.folder, tmp_path, monkeypatch, engine="torch")
    endpoint = SimpleNamespace(invoke_endpoint=lambda **sent: _passed_on(ask, **sent))
    monkeypatch.setattr(lambda_function, "runtime", lambda: endpoint)
    monkeypatch.setenv("ENDPOINT_NAME", "labels")
    events = [{"image": base64.b64encode(file.read_bytes()).decode()} for file in files]
    bodies = [json.loads(lambda_function.lambda_handler(event)["body"]) for event in events]
    assert "predictions" in bodies[0], bodies[0]
    behind = [body["predictions"][0] for body in bodies]
    handled = [json.loads(ask(file.read_bytes(), "image/png").body)["predictions"][0] for file in files]

    session = onnxruntime.InferenceSession(str(run.folder / "model" / "model.onnx"))
    preprocessing = Preprocessing.from_dict(json.loads((run.folder / "model/model.json").read_text())["preprocessing"])
    pixels = np.stack([preprocessing.pixels(open_picture(file)) for file in files])
    [logits] = session.run(["scores"], {"images": preprocessing.normalise(pixels)})
    assert np.abs(sigmoid(logits) - evaluated).max() < 1e-3

    for name, answers in {
        **{"predict": lines, "server": served, "endpoint": asked, "handler": handled, "lambda": behind},
    }.items():
        for answer, probabilities, has in zip(answers, evaluated, expected, strict=True):
            entries = {entry["class"]: entry for entry in answer["classes"]}
            assert sorted(entries) == list(NAMES), name
            assert np.allclose([entries[label]["probability"] for label in NAMES], probabilities, atol=1e-3), name
            assert [entries[label]["above"] for label in NAMES] == has.tolist(), name


def _passed_on(ask: Ask, *, EndpointName: str, Body: bytes, ContentType: str, Accept: str) -> Any:  # noqa: N803
    """The answer of SageMaker's runtime: that of the handler."""
    return {"Body": io.BytesIO(ask(Body, ContentType, Accept).body), "ContentType": "application/json"}


def test_predictions_as_csv(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = Path(run.config.data.table).parent
    files = [str(root / row["file"]) for row in run.predictions]
    predict([f"run={run.folder}", "engine=torch", f"output={tmp_path / 'labels.csv'}", *files])
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    assert list(rows[0]) == ["file", "label", *NAMES]
    assert [row["label"] for row in rows] == [row["predicted"] for row in run.predictions]
    capsys.readouterr()
    predict([f"run={run.folder}", "engine=torch", "format=csv", *files])
    assert capsys.readouterr().out == (tmp_path / "labels.csv").read_text()
    again = Table(root, table=tmp_path / "labels.csv", label_separator=";", test_fraction=0.0, val_fraction=0.0)
    assert set(again.class_names) <= set(NAMES)
    with pytest.raises(UserError, match="leave top_k out"):
        predict([f"run={run.folder}", "engine=torch", "format=csv", "top_k=1", *files])


def test_the_run_folder_and_its_report(run: Run) -> None:
    rows = list(csv.DictReader((run.folder / "per_class.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == list(NAMES)
    assert np.mean([float(row["average_precision"]) for row in rows]) == pytest.approx(
        run.metrics["test/map"], abs=1e-4
    )
    page = write_report(run.folder).read_text()
    assert "mean average precision is" in page
    assert "could not be created" not in page
    assert all(f"Precision by recall of {name}" in page for name in NAMES), "a chart for each label"
    assert ">mean average precision<" in page, "its curve over the training"
    outputs = read_outputs(run.folder, "test")
    assert outputs is not None
    for place, row in enumerate(rows):
        recall, precision = precision_recall(sigmoid(outputs[0])[:, place], outputs[1][:, place])
        steps = np.diff(recall, prepend=0.0)
        assert (steps * precision).sum() == pytest.approx(float(row["average_precision"]), abs=1e-4)
    again = Table(Path(run.config.data.table).parent, table=run.folder / "predictions.csv", label_separator=";")
    assert again.class_names == NAMES
    model = run.model
    picture = Path(run.config.data.table).parent / run.predictions[0]["file"]
    assert ";".join(sorted(name for name, _ in model.labels([picture])[0])) == run.predictions[0]["predicted"]


def test_all_ways_of_writing_several_labels_are_the_same(run: Run) -> None:
    root = Path(run.config.data.table).parent
    options: dict[str, dict[str, object]] = {
        "labels.csv": {"label_separator": "|"},
        "flags.csv": {"label_columns": list(NAMES)},
        "labels.jsonl": {},
    }
    sources = [Table(table=root / name, **more).source for name, more in options.items()]  # type: ignore[arg-type]
    for source in sources:
        assert source.class_names == NAMES
        for name, split in source.splits().items():
            assert split.multilabel
            assert np.array_equal(split.labels, sources[0].splits()[name].labels)
    train, test = sources[0].train, sources[0].test
    assert test is not None
    assert np.abs(train.labels.mean(axis=0) - test.labels.mean(axis=0)).max() < 0.15, "stratified"
    assert any(not row.any() for row in train.labels), "an image may have no label"


def test_tasks_are_said(run: Run) -> None:
    root = Path(run.config.data.table).parent
    lists = [*PLAIN, f"data={root / 'labels.jsonl'}", f"run_dir={root / 'other'}"]
    with pytest.raises(UserError, match="add task=multilabel"):
        imgcls.fit(imgcls.compose(lists))
    assert imgcls.compose([*lists, "task=multilabel"]).checkpoint.monitor == "val/map"
    for words, complaint in [
        (["task=multilabel", "checkpoint.monitor=val/accuracy"], "with several labels there are val/map"),
        (["checkpoint.monitor=val/map"], "is a metric of task=multilabel"),
    ]:
        with pytest.raises(UserError, match=complaint):
            imgcls.compose([*lists, *words])
