"""The features that are written are those that the head of the model classifies, row for row with their names."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls import embed as module
from imgcls import portable
from imgcls.models.backbones import create_network
from imgcls.portable import reading
from imgcls.preprocessing import Preprocessing
from imgcls.runs.reading import read_table


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


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven images, the third of them damaged, in batches of two."""
    monkeypatch.setattr(reading, "BATCH", 2)
    folder, dice = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(7):
        Image.fromarray(dice.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"={number}.png")
    (folder / "=2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["imgcls.embed", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return int(ended.value.code or 0)


def test_rows_are_the_features_that_the_head_classifies(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "features.npy"
    assert run(monkeypatch, f"run={model}", f"output={output}", photos) == 1
    assert "=2.png" in capsys.readouterr().err
    features, names = np.load(output), [row["file"] for row in read_table(output.with_suffix(".csv"))]
    assert [Path(name).name for name in names] == [f"={number}.png" for number in (0, 1, 3, 4, 5, 6)]
    loaded = portable.load(model)
    assert features.dtype == np.float32
    assert features.shape == (6, loaded.network.num_features)
    with torch.inference_mode():
        logits = loaded.network.head(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(loaded.activation(logits), loaded.predict(names), atol=1e-6)
    np.testing.assert_allclose(features, loaded.embed(names), atol=1e-5)


def test_parquet_holds_the_same(model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (photos / "=2.png").unlink()
    for name in ("features.npy", "features.parquet"):
        assert run(monkeypatch, f"run={model}", f"output={tmp_path / name}", photos) == 0
    table = parquet.read_table(tmp_path / "features.parquet")
    assert table["file"].to_pylist() == [row["file"] for row in read_table(tmp_path / "features.csv")]
    stored = np.stack(table["features"].to_numpy())
    np.testing.assert_array_equal(stored, np.load(tmp_path / "features.npy"))


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
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, f"run={model}", photos, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*features*"))


def test_a_failure_halfway_leaves_nothing(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    features = portable.PortableModel.features

    def dying(self: portable.PortableModel, pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return features(self, pixels)

    monkeypatch.setattr(portable.PortableModel, "features", dying)
    assert run(monkeypatch, f"run={model}", f"output={tmp_path / 'features.npy'}", photos) == 130
    assert not list(tmp_path.glob("*features*"))
