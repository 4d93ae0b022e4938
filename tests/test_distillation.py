"""The benchmark of distillation goes through in small, and measures no row twice."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import write_pictures

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_each_row_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    from imgcls.models.backbones import create_network

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    distillation: Any = importlib.import_module("distillation")
    monkeypatch.setenv("IMGCLS_CACHE", "restored after the test")
    write_pictures(tmp_path / "pictures", {"all": 20})
    save_file(create_network("test_resnet", 3).backbone.state_dict(), tmp_path / "weights.safetensors")
    words = [f"--{name}={tmp_path / 'weights.safetensors'}" for name in ("student", "teacher")]
    words += [f"--{name}-model=test_resnet" for name in ("student", "teacher")]
    words += ["--images", str(tmp_path / "pictures" / "all"), "--labels", "5", "--seeds", "0", "--epochs", "1"]
    words += ["--size", "24", "--teacher-size", "32", "--work", str(tmp_path / "work")]
    words += ["--out", str(tmp_path / "out.jsonl")]
    threads = torch.get_num_threads()
    distillation.main([*words, "--systems", "student alone"])
    monkeypatch.setattr(distillation, "write_data", lambda *_: pytest.fail("the images are there"))
    distillation.main(words)
    torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["system"] for row in rows] == list(distillation.SYSTEMS)
    assert all(0 <= row["accuracy"] <= 1 and row["epoch_seconds"] > 0 for row in rows)
    folders = [tmp_path / "work" / "all" / "5" / name for name in ("images/train", "images/val", "images/test")]
    splits = [
        {file.resolve() for file in folder.glob("*/*")} for folder in (*folders, folders[0].parents[1] / "unlabelled")
    ]
    assert [len(split) for split in splits] == [15, 6, 12, 27]
    assert len(set.union(*splits)) == 60, "no image is in two of them"
    assert "| the teacher |" in capsys.readouterr().out
