"""Models exported by older versions can still be read."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from imgcls import portable
from imgcls.portable.description import FORMAT_VERSION, UPGRADES, read_description, temperature_of

SAMPLE = Path(__file__).parent.parent / "samples" / "portable-v1.tar.xz"
EXPECTED = [  # computed by the version that wrote the sample
    [0.274887, 0.391745, 0.333368],
    [0.220698, 0.328283, 0.451019],
    [0.264886, 0.349985, 0.385129],
    [0.27632, 0.314515, 0.409165],
]


def pictures() -> np.ndarray:
    """uint8 (4, 32, 32, 3), made without a random number generator."""
    pixels = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    for number in range(4):
        pixels[number, ..., number % 3] = 255
        pixels[number, : 8 * number] = 40 * number
    return pixels


@pytest.fixture(scope="module")
def version_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable-v1")
    with tarfile.open(SAMPLE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_version_1_gives_the_same_probabilities(version_1: Path, engine: str) -> None:
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    model = portable.load(version_1, engine=engine)
    assert model.class_names == ("cat", "dog", "owl")
    assert np.allclose(model.probabilities(pictures()), EXPECTED, atol=1e-5)


def test_an_old_description_is_upgraded(version_1: Path) -> None:
    assert '"format_version": 1' in (version_1 / "model.json").read_text()
    description = read_description(version_1)
    assert description["format_version"] == FORMAT_VERSION
    assert description["parity"] == {}
    assert description["preprocessing"]["fit"] == "crop"
    assert description["calibration"] == {}
    assert temperature_of(description) == 1


def test_every_version_has_an_upgrade() -> None:
    assert sorted(UPGRADES) == list(range(1, FORMAT_VERSION))
