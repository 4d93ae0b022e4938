"""The benchmark of fine-tuning goes through in small, and measures no row twice."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import write_pictures

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SYSTEMS = ["imgcls", "imgcls, preset=fast", "tutorial loop", "LogisticRegressionCV"]


@pytest.fixture
def finetuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The benchmark, whose rows are measured in this process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module: Any = importlib.import_module("finetuning")
    monkeypatch.setitem(module.SYSTEMS, "fastai fine_tune", lambda *_: pytest.fail("it is not installed"))

    def measure(row: dict[str, Any], arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return {**row, **module.SYSTEMS[row["system"]](row, root, arguments.weights, folder)}

    monkeypatch.setattr(module, "measure", measure)
    return module


def test_each_row_is_measured_once(finetuning: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    from imgcls.models.backbones import create_network

    pictures = write_pictures(tmp_path / "pictures", {"all": 40}) / "all"
    save_file(create_network("test_resnet", 3).backbone.state_dict(), tmp_path / "weights.safetensors")
    words = ["--caltech", str(pictures), "--weights", str(tmp_path / "weights.safetensors"), "--model", "test_resnet"]
    words += ["--size", "24", "--epochs", "1", "--seeds", "0", "--out", str(tmp_path / "out.jsonl")]
    threads = torch.get_num_threads()
    finetuning.main([*words, "--systems", *SYSTEMS[:2]])
    finetuning.main([*words, "--systems", *SYSTEMS])
    torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["data"], row["system"]) for row in rows] == [("caltech", system) for system in SYSTEMS]
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"] > 0 for row in rows)
    assert rows[1]["accuracy"] > 0.8
    printed = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in printed.splitlines()[-4:]] == [f"| {system}" for system in SYSTEMS]


def test_the_splits_have_no_image_in_common(finetuning: Any, tmp_path: Path) -> None:
    write_pictures(tmp_path / "dogs", {"train": 8, "valid": 2, "test": 3}, classes=("a", "b"))
    arguments = argparse.Namespace(dogs=tmp_path / "dogs", caltech=tmp_path / "dogs" / "train")
    for name, counts in (("dogs5", [10, 2, 6]), ("dogs", [16, 4, 6]), ("caltech", [10, 2, 4])):
        root = tmp_path / "out" / name
        finetuning.write_data(name, arguments, root)
        files = [[file.resolve() for file in (root / split).rglob("*.png")] for split in ("train", "val", "test")]
        assert [len(part) for part in files] == counts
        assert len({file for part in files for file in part}) == sum(counts)
        assert all(any(folder.iterdir()) for folder in root.glob("*/*"))
