"""`output=FILE` is whole or absent, and resumes after a kill to the same lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls import portable
from imgcls import predict as module
from imgcls.cli import guarded
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.portable.conformal import ClassSets
from imgcls.predict import predict


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "run"
    network = create_network("test_resnet", 3).eval()
    portable.export(
        network,
        preprocessing=Preprocessing(16, 16),
        class_names=["a", "b", "c"],
        metrics={},
        folder=folder / "model",
        onnx=False,
        pixels=None,
        sets=ClassSets(0.0, 1, np.linspace(0, 0.5, 99), 99),
    )
    (folder / "status.json").write_text(json.dumps({"state": "finished", "reason": None}))
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)


def test_a_killed_command_continues_to_the_same_lines(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={run}", "engine=torch", str(photos)]
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert guarded(lambda: predict([*words, f"output={whole}"])) == 1
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [Path(line["file"]).name for line in lines] == [f"{name}.png" for name in (*"012345", "=6")]
    assert "error" in lines[2]
    assert [len(line["classes"]) for line in lines if "classes" in line] == [3] * 6
    assert "1 of 7 images could not be read" in capsys.readouterr().err

    outputs, calls = portable.PortableModel.outputs, []

    def dying(model: portable.PortableModel, pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return outputs(model, pixels)

    with monkeypatch.context() as patched:
        patched.setattr(portable.PortableModel, "outputs", dying)
        assert guarded(lambda: predict([*words, f"output={killed}"])) == 130
    assert not killed.exists()
    (partial,) = tmp_path.glob(".killed.jsonl.*.partial")
    assert len(partial.read_text().splitlines()) == 4
    with partial.open("a") as file:
        file.write('{"file": "half a li')
    opened: list[str] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *more, **options: (opened.append(str(file)), original(file, *more, **options))[1])  # fmt: skip # noqa: E501
    assert guarded(lambda: predict([*words, f"output={killed}"])) == 1
    assert killed.read_text() == whole.read_text()
    assert len(opened) == 3, "only the images that are left are decoded"
    assert not list(tmp_path.glob(".*partial"))
    assert "4 of 7 images are done already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_several_processes_write_the_file_of_one(
    name: str,
    run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [f"run={run}", "engine=torch", "top_k=2", str(photos)]
    one, several = tmp_path / "one" / name, tmp_path / "several" / name
    assert guarded(lambda: predict([*words, f"output={one}"])) == 1
    monkeypatch.setattr(module, "BATCH", 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    codes = []
    for rank in (2, 2, 0, 1):  # the first is started again: its share is kept
        assert not several.exists()
        monkeypatch.setenv("RANK", str(rank))
        codes.append(guarded(lambda: predict([*words, f"output={several}"])))
    assert codes == [0, 0, 0, 1], "the exit code of another process would let torchrun end all of them"
    assert several.read_text() == one.read_text()
    assert [file.name for file in several.parent.iterdir()] == [name]
    assert "1 of 7 images could not be read" in capsys.readouterr().err
    assert guarded(lambda: predict(words)) == 2
    assert "give output=FILE" in capsys.readouterr().err


def test_other_images_or_options_do_not_continue_a_killed_command(run: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    keys = set()
    for words in (["top_k=2"], ["top_k=3"], ["top_k=3", str(photos / "0.png")]):

        def dying(*_: object) -> object:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "_compute", dying)
            assert guarded(lambda words=words: predict([f"run={run}", f"output={output}", str(photos), *words])) == 130
        keys |= {file.name for file in tmp_path.glob(".out.jsonl.*.partial")}
    assert len(keys) == 3


def test_what_is_printed_is_what_the_model_answers(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: predict([f"run={run}", "engine=torch", "format=jsonl", "top_k=1", str(photos)])) == 1
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    model = portable.load(run / "model", "torch")
    expected = [model.top([photos / Path(line["file"]).name], 1)[0][0] for line in lines]
    assert len(lines) == 6
    for line, (name, value) in zip(lines, expected, strict=True):
        assert line["classes"][0]["class"] == name
        assert line["classes"][0]["probability"] == pytest.approx(value, abs=1e-5)
    assert "2.png" in printed.err


def test_coverage_prints_sets(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"run={run}", "engine=torch", str(photos / "0.png"), str(photos / "1.png")]
    for coverage, size in ((0.01, 1), (0.999, 3)):
        assert guarded(lambda coverage=coverage: predict([*words, "format=jsonl", f"coverage={coverage}"])) == 0  # type: ignore[misc]
        assert [len(json.loads(line)["classes"]) for line in capsys.readouterr().out.splitlines()] == [size] * 2
    table = tmp_path / "sets.csv"
    assert guarded(lambda: predict([*words, "coverage=0.999", f"output={table}"])) == 0
    assert table.read_text().splitlines()[0] == "file,class,probability,class_2,probability_2,class_3,probability_3"
    capsys.readouterr()
    for option, message in [("top_k=2", "not both"), ("format=csv", "output=FILE.csv")]:
        assert guarded(lambda option=option: predict([*words, "coverage=0.9", option])) == 2  # type: ignore[misc]
        assert message in capsys.readouterr().err
    assert guarded(lambda: predict([*words, "coverage=95"])) == 2
    assert "coverage=95.0: must be a number between 0 and 1" in capsys.readouterr().err
    description = json.loads((run / "model" / "model.json").read_text())
    del description["sets"]
    (run / "model" / "model.json").write_text(json.dumps(description))
    assert guarded(lambda: predict([*words, "coverage=0.9"])) == 2
    assert "exported without sets" in capsys.readouterr().err
