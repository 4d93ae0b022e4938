"""The features that are written are those that the head of the model classifies, row for row with their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imgcls import embed as module
from imgcls import portable
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.portable import reading
from imgcls.runs.reading import read_table
from tests.conftest import Command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    portable.export(
        create_network("test_resnet", 3).eval(),
        preprocessing=Preprocessing(16, 16),
        class_names=["a", "b", "c"],
        metrics={},
        folder=folder,
        onnx=False,
    )
    return folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH", 2)


def test_rows_are_the_features_that_the_head_classifies(
    model: Path, photos: Path, tmp_path: Path, run_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "features.npy"
    assert run_command(module, f"run={model}", f"output={output}", photos) == 1
    assert "2.png" in capsys.readouterr().err
    features, names = np.load(output), [row["file"] for row in read_table(output.with_suffix(".csv"))]
    assert [Path(name).name for name in names] == [f"{name}.png" for name in (*"01345", "=6")]
    loaded = portable.load(model)
    assert features.dtype == np.float32
    assert features.shape == (6, loaded.network.num_features)
    with torch.inference_mode():
        logits = loaded.network.head(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(loaded.activation(logits), loaded.predict(names), atol=1e-6)
    np.testing.assert_allclose(features, loaded.embed(names), atol=1e-5)


def test_parquet_holds_the_same(model: Path, photos: Path, tmp_path: Path, run_command: Command) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (photos / "2.png").unlink()
    for name in ("features.npy", "features.parquet"):
        assert run_command(module, f"run={model}", f"output={tmp_path / name}", photos) == 0
    table = parquet.read_table(tmp_path / "features.parquet")
    assert table["file"].to_pylist() == [row["file"] for row in read_table(tmp_path / "features.csv")]
    stored = np.stack(table["features"].to_numpy())
    np.testing.assert_array_equal(stored, np.load(tmp_path / "features.npy"))


@pytest.mark.parametrize("name", ["features.npy", "features.parquet"])
def test_several_processes_write_the_file_of_one(
    name: str, model: Path, photos: Path, tmp_path: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow.parquet")
    one, several = tmp_path / "one" / name, tmp_path / "several" / name
    run_command(module, f"run={model}", f"output={one}", photos)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (1, 2, 0):
        assert not several.exists()
        monkeypatch.setenv("RANK", str(rank))
        assert run_command(module, f"run={model}", f"output={several}", photos) == 0
    assert sorted(file.name for file in several.parent.iterdir()) == sorted(file.name for file in one.parent.iterdir())
    if name.endswith(".parquet"):
        parquet = pytest.importorskip("pyarrow.parquet")
        assert parquet.read_table(several).equals(parquet.read_table(one))
    else:
        np.testing.assert_allclose(np.load(several), np.load(one), atol=1e-6)
        assert several.with_suffix(".csv").read_text() == one.with_suffix(".csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output=features.txt"], "output=features.txt: must end with .npy or .parquet."),
        (["run="], "Give a run folder and images"),
        (["outptu=x.npy"], "Unknown option 'outptu'. Did you mean output?"),
    ],
)
def test_mistakes_leave_nothing(
    arguments: list[str],
    message: str,
    model: Path,
    photos: Path,
    tmp_path: Path,
    run_command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(module, f"run={model}", photos, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*features*"))


def test_a_failure_halfway_leaves_nothing(
    model: Path, photos: Path, tmp_path: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    features = portable.PortableModel.features

    def dying(self: portable.PortableModel, pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return features(self, pixels)

    monkeypatch.setattr(portable.PortableModel, "features", dying)
    assert run_command(module, f"run={model}", f"output={tmp_path / 'features.npy'}", photos) == 130
    assert not list(tmp_path.glob("*features*"))
