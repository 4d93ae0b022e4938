"""The benchmark of a GPU goes through on a CPU, in small, and resumes where it stopped."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.test_recipes import write_cifar10

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("gpu")
    forbidden = SimpleNamespace(run=lambda *_, **__: pytest.fail("no test installs anything"))
    monkeypatch.setattr(module, "subprocess", forbidden)
    return module


def results(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "results.json").read_text())["values"]
    return values


def test_all_parts_go_through_in_small(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_processes(monkeypatch)
    pictures, out = write_cifar10(tmp_path / "pictures"), tmp_path / "out"
    words = ["--device", "cpu", "--small", "--cifar10", str(pictures), "--airbench", str(tmp_path), "--out", str(out)]
    gpu.main([*words, "--parts", "2,3,4,6,7,8", "--minutes", "0"])
    assert results_are_none(out)
    assert "Run the same command again" in capsys.readouterr().out

    gpu.main([*words, "--parts", "1,2,3,4,6,7,8"])
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
    assert found["results"]["6 test_resnet features"]["images_per_second"]["repeats"] == 2
    lines = {line.strip().rsplit(maxsplit=1)[0]: line.split()[-1] for line in printed.splitlines() if " / " in line}
    assert lines["usual loop / imgcls"] == "10.0", "four trials of two epochs, of which one takes 3.75 s, in 3 s"
    assert "cifar10_fast / airbench94_muon.py" in lines
    assert "test_resnet server, 64 clients / bare engine" in lines
    assert [path.name for path in out.iterdir()] == ["results.json"]

    monkeypatch.setattr("gpu_notebook.imgcls.fit", lambda *_: pytest.fail("it measured again"))
    gpu.main([*words, "--parts", "1,2,3,4,6,7,8"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


def pretend_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes do takes long, and other tests see to it."""
    import gpu_use  # type: ignore[import-not-found]
    import race  # type: ignore[import-not-found]

    ticks, now = itertools.count(), [0.0]

    def usual_trial(job: dict[str, Any]) -> float:
        assert job["epochs"] == 1
        now[0] += 3.75
        return 0.5

    monkeypatch.setattr("gpu_recipes.export_onnx", lambda *_: False)
    monkeypatch.setattr("gpu_recipes.run_published", lambda *_: [race.Finish(0.94, 2.0), race.Finish(0.95, 4.0)])
    for name, replacement in (
        ("shared_search", lambda *_: (3.0, [{"trainer.max_epochs": "2"}] * 4)),
        ("write_search", lambda *_: None),
        ("usual_trial", usual_trial),
    ):
        monkeypatch.setattr(gpu_use.sweeps, name, replacement)
    monkeypatch.setattr(gpu_use, "clock", lambda: now[0] + next(ticks) / 1e6)
    monkeypatch.setattr(gpu_use.serving, "server", lambda *_: contextlib.nullcontext(1))
    monkeypatch.setattr(gpu_use.serving, "load_from_outside", lambda *_: {"throughput": 90.0})


def test_only_what_is_missing_is_installed_and_only_beside_a_gpu(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=lambda words, **_: calls.append(words) or Failed))
    monkeypatch.setattr(gpu, "REQUIREMENTS", {"json": "json", "no_such_package": "a", "nor_this": "a", "or_this": "b"})
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert not calls
    gpu.install_missing()
    assert [words[1:] for words in calls] == [["-m", "pip", "install", "--quiet", "a", "b"]]


class Failed:
    returncode = 1


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
        gpu.main(["--device", "cpu", "--parts", "9", "--out", str(tmp_path)])


def test_plain_loops_have_the_time_of_the_recipe_and_no_row_is_measured_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    recipes: Any = importlib.import_module("recipes")
    measured: list[int] = []

    def train_recipe(row: dict[str, Any], root: Path) -> dict[str, float]:
        measured.append(row["seed"])
        assert (root / "cifar-10-batches-bin" / "test_batch.bin").stat().st_size == 20 * 3073
        return {"accuracy": 0.5 + row["seed"] / 10, "processor": 0.3, "seconds": 0.5, "passes": row["epochs"]}

    def tiny() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 10))

    monkeypatch.setattr(recipes, "train_recipe", train_recipe)
    monkeypatch.setattr(recipes, "PLAIN", {"plain ResNet20": tiny})
    words = ["--cifar10", str(write_cifar10(tmp_path / "pictures")), "--train", "200", "--test", "20"]
    words += ["--out", str(tmp_path / "out.jsonl"), "--seeds", "0"]
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit):
        recipes.main([*words, "--systems", "plain ResNet20"])
    recipes.main(words)
    recipes.main([*words, "1"])
    torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["system"], row["seed"]) for row in rows] == [
        (system, seed) for seed in (0, 1) for system in ("cifar10_fast", "plain ResNet20")
    ]
    assert measured == [0, 1]
    assert all(row["processor"] >= 0.3 and row["passes"] > 1 for row in rows[1::2])
    assert rows[1]["accuracy"] > 0.15, "chance is 0.1"
    assert "| cifar10_fast | 55.0 ± 7.1 | 0.3 ± 0.0 | 3.0 ± 0.0 | 2 |" in capsys.readouterr().out
