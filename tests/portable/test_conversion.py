"""Other formats: what is written answers as it certifies, and what answers worse is refused or mended."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls import evaluate, export, portable, predict, verify
from imgcls.errors import UserError
from imgcls.portable import certificate, conversion, formats
from imgcls.portable.calibration import Calibration
from imgcls.portable.certificate import Answers
from imgcls.portable.conversion import Conversions
from imgcls.portable.engines import TorchEngine
from imgcls.portable.formats import Source, find_format, register_format
from imgcls.portable.novelty import Novelty
from imgcls.system.files import sha256_of
from imgcls.system.machine import processor_name
from tests.conftest import Command
from tests.inputs.images import noise
from tests.portable.test_portable import NAMES, PIXELS, SHAPE, build
from tests.trainings import Fit

IMAGES = np.random.default_rng(0).standard_normal((40, 3, 32, 32), dtype=np.float32)


@pytest.fixture(autouse=True)
def fast_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured once, and formats that a test registers are gone after it."""
    monkeypatch.setattr(certificate, "SECONDS", 0.0)
    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a temperature, which knows unknown images."""
    target, network = tmp_path_factory.mktemp("conversion") / "model", build().eval()
    with torch.inference_mode():
        features = torch.nn.functional.normalize(network.features(torch.from_numpy(IMAGES)), dim=1).numpy()
    portable.export(
        network,
        preprocessing=SHAPE,
        class_names=NAMES,
        metrics={"val/accuracy": 0.75},
        folder=target,
        calibration=Calibration(temperature=0.05, images=6, effect={}),
        novelty=Novelty(features[:3], scale=2.0, offset=0.1, share=0.95, images=6),
    )
    return target


def conversions(folder: Path, pictures: Sequence[Image.Image] = ()) -> Conversions:
    """Of labels that the float32 network always gets right."""
    model = portable.load(folder)
    labels = model.engine.outputs(IMAGES)[:, : len(NAMES)].argmax(axis=1)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from ((IMAGES[start : start + 16], labels[start : start + 16]) for start in (0, 16, 32))

    return Conversions(folder, model, IMAGES[:32], batches, lambda: pictures)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_onnx_answers_as_its_certificate_says(folder: Path, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("onnxruntime")
    done = conversions(folder).convert("onnx", precision, tmp_path / precision)
    assert sorted(file.name for file in (tmp_path / precision).iterdir()) == ["README.md", "model.json", "model.onnx"]
    model, plain = portable.load(tmp_path / precision), portable.load(folder)
    found, expected = model.engine.outputs(IMAGES), plain.engine.outputs(IMAGES)
    assert found.shape == (40, len(NAMES) + 1)
    probabilities = [model.activation(outputs[:, : len(NAMES)]) for outputs in (found, expected)]
    written = model.description["export"]
    assert (written["format"], written["precision"], written["certificate"]["images"]) == ("onnx", precision, 40)
    # the batch sizes of both are other ones, which changes the last bits
    assert written["certificate"]["difference"] == pytest.approx(np.abs(np.subtract(*probabilities)).max(), abs=1e-5)
    assert written["certificate"]["accuracy_before"] == 1.0
    same = (probabilities[0].argmax(axis=1) == probabilities[1].argmax(axis=1)).mean()
    assert written["certificate"]["accuracy"] == same == done.certificate.same_class
    assert np.allclose(found[:, -1], expected[:, -1], atol=0.2 if precision == "int8" else 0.02)
    share = {"fp32": 1.5, "fp16": 0.8, "int8": 0.6}[precision]  # of a network so small that its graph counts
    assert done.certificate.megabytes < share * done.certificate.megabytes_before
    assert f"| accuracy | 100.00% | {same:.2%} |" in (tmp_path / precision / "README.md").read_text()
    assert model.engine.name.startswith("ONNX Runtime")
    with pytest.raises(UserError, match=r"engine=torch: .* holds format=onnx alone"):
        portable.load(tmp_path / precision, engine="torch")
    with pytest.raises(UserError, match=r"device=cuda:0: format=onnx takes no device"):
        portable.load(tmp_path / precision, device="cuda:0")


@pytest.mark.parametrize(
    ("form", "precision"), [("openvino", "fp32"), ("openvino", "fp16"), ("openvino", "int8"), ("torch", "fp32")]
)
def test_other_formats_answer_as_their_certificates_say(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, precision: str
) -> None:
    pytest.importorskip(form)
    done = conversions(folder).convert(form, precision, tmp_path / "out")
    if form == "torch":
        with pytest.raises(UserError, match=r"reading format=torch can run code that is in it\. .* IMGCLS_TRUST=1"):
            portable.load(tmp_path / "out")
        monkeypatch.setenv("IMGCLS_TRUST", "1")
    model, plain = portable.load(tmp_path / "out"), portable.load(folder)
    found, expected = model.engine.outputs(IMAGES), plain.engine.outputs(IMAGES)
    assert found.shape == expected.shape
    tolerance = {"fp32": 1e-3, "fp16": 0.3, "int8": 1.0}[precision]  # of logits that a temperature of 0.05 multiplies
    assert np.abs(found - expected).max() < tolerance
    assert done.certificate.points_lost <= certificate.TOLERANCE_POINTS[precision]
    assert model.engine.name.startswith({"openvino": "OpenVINO", "torch": "torch.export"}[form])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_is_no_end_of_the_process(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        find_format("torch").converter(conversions(folder)._source, "fp32").write(tmp_path)


def test_openvino_takes_decoded_images_too(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pictures = [noise(*size) for size in ((1, 40), (300, 30), (61, 47))]
    done = conversions(folder, pictures).convert("openvino", "fp32", tmp_path / "graph", in_graph=True)
    assert done.graph is not None
    assert done.graph.agreement == 1.0
    assert np.allclose(
        portable.load(tmp_path / "graph").outputs(PIXELS), portable.load(folder).outputs(PIXELS), atol=1e-3
    )


def test_a_provider_that_is_not_there_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"engine=onnx-coreml: the installed ONNX Runtime has .*, not CoreMLExecution"):
        portable.load(folder, engine="onnx-coreml")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CoreMLExecutionProvider"])
    with pytest.raises(UserError, match="CoreMLExecutionProvider cannot be used on this machine, only CPUExecution"):
        portable.load(folder, engine="onnx-coreml")


def test_the_server_prefers_an_int8_export_that_its_certificate_calls_faster(tmp_path: Path, folder: Path) -> None:
    model, export = tmp_path / "model", tmp_path / "exports" / "onnx-int8"
    export.mkdir(parents=True)
    shutil.copytree(folder, model)
    good = {
        **{"accuracy_before": 0.9, "accuracy": 0.896, "machine": f"{processor_name()}, 2 threads"},
        **{"images_per_second": 20, "images_per_second_before": 10, "latency_ms": 5, "latency_ms_before": 9},
    }

    def preferred(**changes: Any) -> Path | None:
        content = json.loads((folder / "model.json").read_text())
        content["export"] = {"certificate": {**good, **changes}, "weights": weights}
        (export / "model.json").write_text(json.dumps(content))
        return certificate.faster_export(model)

    weights = sha256_of(model / "model.safetensors")
    assert preferred() == export
    assert preferred(accuracy=0.894) is None
    assert preferred(images_per_second=9) is None
    assert preferred(machine="another, 2 threads") is None
    weights = "0" * 64
    assert preferred() is None  # the run was exported again after it
    assert certificate.faster_export(folder) is None


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_preprocessing_in_the_graph_takes_decoded_images(folder: Path, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("onnxruntime")
    pictures = [noise(*size) for size in ((1, 40), (300, 30), (32, 32), (61, 47))]
    maker = conversions(folder, pictures)
    done = maker.convert("onnx", precision, tmp_path / "graph", in_graph=True)
    assert done.graph is not None
    assert (done.graph.pictures, done.graph.agreement) == (4, 1.0)
    assert done.graph.difference < (1e-2 if precision == "fp32" else 0.1)
    maker.convert("onnx", precision, tmp_path / "plain")
    graph, plain = portable.load(tmp_path / "graph"), portable.load(tmp_path / "plain")
    assert graph.precision == plain.precision == precision
    # images that are resampled already, as predict, evaluate and serve have them, give the same answers to the bit
    assert (graph.outputs(PIXELS) == plain.outputs(PIXELS)).all()
    assert "decoded images of any size" in (tmp_path / "graph" / "README.md").read_text()


def test_preprocessing_in_the_graph_that_answers_differently_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(conversion, "SAME_CLASS", 1.1)
    with pytest.raises(UserError, match="preprocessing=graph answers differently"):
        conversions(folder, [noise(61, 47)]).convert("onnx", "fp32", tmp_path / "graph", in_graph=True)
    assert list(tmp_path.iterdir()) == []


HARM = {"first": 0.0, "second": 3.0, "third": 0.1, "fourth": 5.0, "last": 0.2}
"""How much each layer of the pretended format adds to the logit of a wrong class, unless it is kept in float32."""


def pretended(model_folder: Path, harm: dict[str, float], base: float = 0.0) -> None:
    """Register the format `pretended`: the outputs of torch, and the harm of the layers that are not kept."""

    class Format:
        precisions = ("int8",)

        def check(self) -> None:
            pass

        def converter(self, source: Source, precision: str) -> Any:
            return Writer()

        def engine(self, folder: Path, threads: int | None = None) -> Any:
            return Engine(json.loads((folder / "kept.json").read_text()))

    class Writer:
        layers = tuple(harm)

        def write(self, folder: Path, keep: Sequence[str] = ()) -> None:
            (folder / "kept.json").write_text(json.dumps(list(keep)))

    class Engine:
        name = "pretended"

        def __init__(self, kept: list[str]) -> None:
            self.error = base + sum(value for name, value in harm.items() if name not in kept)

        def outputs(self, images: np.ndarray) -> np.ndarray:
            outputs = plain.outputs(images)
            wrong = outputs[:, : len(NAMES)].argmin(axis=1)
            outputs[np.arange(len(outputs)), wrong] += self.error * spread
            return outputs

    plain = portable.load(model_folder).engine
    assert isinstance(plain, TorchEngine)
    logits = np.sort(plain.outputs(IMAGES)[:, : len(NAMES)])
    spread = float((logits[:, -1] - logits[:, 0]).max())
    register_format("pretended")(Format)


def test_the_layers_that_do_the_harm_stay_in_float32(folder: Path, tmp_path: Path) -> None:
    pretended(folder, HARM)
    done = conversions(folder).convert("pretended", "int8", tmp_path / "out")
    assert done.kept[:2] == ("fourth", "second")
    assert set(done.kept) < set(HARM)
    assert done.lost_at_first == 100
    assert done.certificate.points_lost <= 0.5
    assert json.loads((tmp_path / "out" / "kept.json").read_text()) == list(done.kept)
    assert f"{', '.join(done.kept[:3])}" in str(done)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Of 5 layers these stay in float32: " in card
    assert portable.load(tmp_path / "out").engine.name == "pretended"


def test_what_answers_worse_than_it_may_is_not_written(folder: Path, tmp_path: Path) -> None:
    pretended(folder, HARM, base=10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier").touch()
    with pytest.raises(UserError, match=r"loses 100.00 points of accuracy on 40 validation images \(0.5 are allowed\)"):
        conversions(folder).convert("pretended", "int8", tmp_path / "out")
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "earlier"]
    with pytest.raises(UserError, match="format=pretended has precision=int8, not fp16"):
        conversions(folder).convert("pretended", "fp16", tmp_path / "out")


def test_accuracy_of_several_labels_is_that_of_the_decisions() -> None:
    probabilities, labels = np.array([[0.9, 0.2], [0.3, 0.6]]), np.array([[1, 0], [1, 1]])
    assert Answers(probabilities, labels, (0.5, 0.5)).accuracy == 0.75
    assert Answers(probabilities, np.array([0, 0])).accuracy == 0.5


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if "onnx" in name else original(name))
    form = find_format("onnx")
    with pytest.raises(UserError, match=r"^format=onnx needs onnx and onnxscript and onnxruntime: pip install"):
        form.check()
    with pytest.raises(UserError, match=r"^A model of format=onnx needs onnxruntime: pip install"):
        form.engine(tmp_path)
    with pytest.raises(UserError, match=r"format=onxx: .*onnx"):
        find_format("onxx")


def test_the_commands_write_and_use_an_exported_folder(
    fit: Fit, run_command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    for module in (conversion, certificate):
        monkeypatch.setattr(module, "TOLERANCE_POINTS", dict.fromkeys(formats.PRECISIONS, 100.0))
    run = fit("trainer.max_epochs=1")
    assert run_command(export, f"run={run.folder}", "format=all", "precision=int8") == 0
    printed = capsys.readouterr().out
    exported = run.folder / "exports" / "onnx-int8"
    assert str(exported) in printed
    rows = [["torch", "fp32"], ["onnx", "int8"], *([["openvino", "int8"]] if find_spec("openvino") else [])]
    assert [line.split()[:2] for line in printed.splitlines()[-len(rows) :]] == rows

    found = json.loads((exported / "model.json").read_text())["export"]["certificate"]
    assert run_command(evaluate, f"run={exported}", "split=val", f"output={run.folder / 'val.json'}") == 0
    measured = json.loads((run.folder / "val.json").read_text())
    assert measured["images"] == found["images"]
    assert measured["accuracy"] == pytest.approx(found["accuracy"])
    picture = next((run.folder.parent / "pictures").rglob("*.png"))
    capsys.readouterr()
    assert run_command(predict, f"run={exported}", str(picture)) == 0
    assert picture.name in capsys.readouterr().out

    images = run.folder.parent / "pictures" / "test"  # a folder for each class
    assert run_command(verify, exported, images) == 0
    content = json.loads((exported / "certificate.json").read_text())
    assert (content["passed"], content["images"], content["precision"]) == (True, 24, "int8")
    assert content["accuracy_before"] == pytest.approx(run.metrics["test/accuracy"])
    assert content["sha256"]["model.onnx"] == hashlib.sha256((exported / "model.onnx").read_bytes()).hexdigest()
    monkeypatch.setattr(certificate, "TOLERANCE_POINTS", dict.fromkeys(formats.PRECISIONS, -1.0))
    assert run_command(verify, exported, picture) == 2
    assert json.loads((exported / "certificate.json").read_text())["passed"] is False
    assert run_command(verify, exported) == 2

    assert run_command(export, f"run={run.folder}", "precision=int8") == 2
    assert run_command(export, f"run={run.folder}", "format=onnx", "checkpoint=last") == 2
    assert "checkpoint= is for format=portable" in capsys.readouterr().err
