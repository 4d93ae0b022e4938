"""An export that disagrees with the trained network fails."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from imgcls import portable
from imgcls.errors import UserError
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.models.network import Network
from imgcls.models.weight_files import read_dictionaries
from imgcls.portable import exporter
from imgcls.portable.calibration import Calibration, Quality
from imgcls.portable.novelty import Novelty, fit_novelty
from imgcls.portable.parity import Parity, compare
from imgcls.portable.weights import read_safetensors, read_weights
from tests.models.test_views import spread_margins

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)


def write(
    folder: Path,
    onnx: bool,
    diverged: bool = False,
    calibration: Calibration | None = None,
    network: Network | None = None,
    novelty: Novelty | None = None,
) -> dict[str, Parity]:
    torch.manual_seed(0)
    network = network or create_network("test_resnet", 3)
    if diverged:
        torch.nn.init.constant_(next(network.backbone.parameters()), torch.nan)
    shape = Preprocessing(32, 32)
    names = ["cat", "dog", "owl"]
    return portable.export(
        network,
        preprocessing=shape,
        class_names=names,
        metrics={},
        folder=folder,
        onnx=onnx,
        pixels=PIXELS,
        calibration=calibration,
        novelty=novelty,
    )


def test_the_parity_is_in_the_description_and_on_the_card(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    parities = write(tmp_path, onnx=True)
    assert set(parities) == {"safetensors", "onnx"}
    for parity in parities.values():
        assert parity.sound
        assert parity.pictures == len(PIXELS)
    description = json.loads((tmp_path / "model.json").read_text())
    assert description["parity"]["onnx"] == {
        "pictures": 10,
        "difference": parities["onnx"].difference,
        "agreement": 1.0,
    }
    assert "compared with the trained network on 10 validation images" in (tmp_path / "README.md").read_text()


def test_a_diverged_network_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, onnx=False, diverged=True)
    assert "outputs are not finite" in caplog.text
    assert "against the trained network" not in caplog.text, "which would be equal"


def test_a_failed_check_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, onnx=False)
    assert (tmp_path / "model.json").is_file()
    read_network = exporter.read_network

    def read_other_network(*arguments: object) -> object:
        network = read_network(*arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            network.head[1].bias[1] += 0.5
        return network

    monkeypatch.setattr(exporter, "read_network", read_other_network)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="failed its check: safetensors"):
        write(tmp_path, onnx=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, "the model that was there stays"


def test_an_old_onnx_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"of another model")
    write(tmp_path, onnx=False)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("second", "sound"),
    [
        ([[0.7, 0.3], [0.5, 0.5]], True),
        ([[0.6995, 0.3005], [0.5, 0.5]], True),
        ([[0.69, 0.31], [0.5, 0.5]], False),
        ([[0.7, 0.3], [0.4999999, 0.5000001]], True),
        ([[0.3, 0.7], [0.5, 0.5]], False),
        ([[float("nan"), 0.3], [0.5, 0.5]], False),
    ],
)
def test_which_differences_are_sound(second: list[list[float]], sound: bool) -> None:
    assert compare(np.array([[0.7, 0.3], [0.5, 0.5]]), np.array(second)).sound == sound


def test_safetensors_are_read_without_the_package(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.randn(4, 3),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 2),
        "mask": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    ours, theirs = read_safetensors(tmp_path / "a.safetensors"), load_file(tmp_path / "a.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)
    content = (tmp_path / "a.safetensors").read_bytes()
    for damaged in (content[:-1], content[:20], b"", content[:8] + b"x" * 8 + content[16:]):
        (tmp_path / "b.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            read_safetensors(tmp_path / "b.safetensors")


def test_weights_that_may_not_be_read_are_not_called_missing(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    read_weights(file)
    file.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        for read in (read_weights, read_safetensors, read_dictionaries):
            with pytest.raises(UserError, match="Permission denied"):
                read(file)
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_every_engine_divides_the_logits_by_the_temperature(tmp_path: Path, engine: str) -> None:
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    quality = Quality(0.1, 0.2, 0.3)
    calibration = Calibration(0.25, 100, {"val": (quality, quality), "test": (quality, quality)})
    for name, temperature in (("plain", None), ("scaled", calibration)):
        write(tmp_path / name, onnx=engine == "onnx", calibration=temperature)
    plain, scaled = (portable.load(tmp_path / name, engine=engine) for name in ("plain", "scaled"))
    logits = plain.engine.outputs(plain.preprocessing.normalise(PIXELS))
    assert np.allclose(scaled.engine.outputs(plain.preprocessing.normalise(PIXELS)), logits / 0.25, atol=1e-4)
    assert (scaled.probabilities(PIXELS).argmax(axis=1) == plain.probabilities(PIXELS).argmax(axis=1)).all()
    assert all(parity.sound for parity in portable.check(tmp_path / "scaled", PIXELS).values())
    assert "divided by the temperature 0.25, fitted on 100 validation" in (tmp_path / "scaled/README.md").read_text()


@pytest.mark.parametrize("views", ["one", "where_unsure"])
def test_every_engine_has_the_same_novelty(tmp_path: Path, views: str) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    network = create_network("test_resnet", 3, views=views).eval()
    images = Preprocessing(32, 32).normalise(PIXELS)
    unsure = spread_margins(network, torch.from_numpy(images)).numpy()
    assert {bool(value) for value in unsure} == {True, False}
    with torch.inference_mode():
        mean = network.mean_features(torch.from_numpy(images)).numpy()
    novelty = fit_novelty(mean, np.arange(len(mean)) % 3, mean, 0.5)
    assert novelty is not None
    write(tmp_path / "model", network=network, onnx=True, novelty=novelty)
    expected = novelty.of(mean)
    for engine in ("torch", "onnx"):
        model = portable.load(tmp_path / "model", engine=engine)
        assert model.known_share == 0.5
        assert np.allclose(model.outputs(PIXELS)[:, -1], expected, atol=0.01)
        assert np.allclose(model.novelty(list(PIXELS)), expected, atol=0.01)
        assert [answer.known for answer in model.top(list(PIXELS))] == (expected <= 1).tolist()
        together = model.outputs(PIXELS)  # batches of sure images, of unsure ones and of one image
        for rows in (unsure == 0, unsure > 0, *np.eye(len(PIXELS), dtype=bool)):
            assert np.allclose(model.outputs(PIXELS[rows]), together[rows], rtol=1e-3, atol=1e-3)
    assert all(parity.sound for parity in portable.check(tmp_path / "model", PIXELS).values())
    (tmp_path / "model" / portable.NOVELTY).unlink()
    with pytest.raises(UserError, match="novelty"):
        portable.load(tmp_path / "model", engine="torch")
