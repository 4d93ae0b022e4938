"""The benchmark of a GPU goes through on a CPU, in small, and resumes where it stopped."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_recipes import write_cifar10

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def results(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "results.json").read_text())["values"]
    return values


def test_all_parts_go_through_in_small(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_recipes.export_onnx", lambda *_: False)  # it takes long, and test_portable.py sees to it
    pictures, out = write_cifar10(tmp_path / "pictures"), tmp_path / "out"
    words = ["--device", "cpu", "--small", "--cifar10", str(pictures), "--out", str(out)]
    gpu.main([*words, "--parts", "2,3,4", "--minutes", "0"])
    assert results_are_none(out)
    assert "Run the same command again" in capsys.readouterr().out

    gpu.main([*words, "--parts", "1,2,3,4"])
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert found["results"] == results(out)
    for name in ("1 test_resnet eager plain loop", "1 test_resnet eager imgcls", "1 files usual", "1 files imgcls"):
        assert found["results"][name]["images_per_second"]["mean"] > 0, name
    assert found["results"]["4 test_resnet eager"]["images_per_second"]["repeats"] == 2
    assert 0 <= found["results"]["2 cifar10_fast seed 0"]["accuracy"] <= 1
    assert found["results"]["2 cifar10_accurate seed 0"]["seconds"] > 0
    assert found["results"]["4 test_resnet ONNX Runtime"] == {"skipped": "onnx is not installed"}
    assert found["results"]["3 out of memory"] == {"skipped": "needs a GPU"}
    assert "test_resnet eager imgcls / plain loop" in printed
    assert [path.name for path in out.iterdir()] == ["results.json"]

    monkeypatch.setattr("gpu_notebook.imgcls.fit", lambda *_: pytest.fail("it measured again"))
    gpu.main([*words, "--parts", "1,2,3,4"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


def results_are_none(out: Path) -> bool:
    return not (out / "results.json").exists() or not results(out)


def test_what_fails_is_told_and_tried_again(gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu_notebook  # type: ignore[import-not-found]

    notes = gpu_notebook.Notebook(tmp_path, minutes=1)
    notes.expect({"scale": "small"})
    notes.measure("4 some eager", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    again = gpu_notebook.Notebook(tmp_path, minutes=1)
    assert "ZeroDivisionError" in again.values["4 some eager"]["error"]
    assert "ZeroDivisionError" in "\n".join(gpu.table(again.values))
    again.expect({"scale": "small"})
    again.measure("4 some eager", lambda: {"images_per_second": gpu_notebook.spread([1.0, 3.0])})
    assert again.values["4 some eager"]["images_per_second"] == {"mean": 2.0, "std": 1.41, "repeats": 2}
    other = gpu_notebook.Notebook(tmp_path, minutes=1)
    other.expect({"scale": "large"})
    assert not other.values
    assert "starting over" in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_told(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--parts", "7", "--out", str(tmp_path)])
