"""Graphs kept without weights: the same file as without the cache, for any weights, and none where it may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.models.network import Network
from imgcls.portable.engines import OnnxEngine, as_columns
from imgcls.portable.exported import Exported
from imgcls.portable.exporter import export_onnx
from imgcls.portable.novelty import Novelty

pytest.importorskip("onnxscript")

SIDE, CLASSES = 32, 3
PREPROCESSING = Preprocessing(image_size=SIDE, resize=SIDE)


@pytest.fixture
def graphs(own_cache: Path) -> Path:
    """The folder of the cache with the graphs; of this test alone."""
    folder = own_cache / "graphs"
    folder.unlink()
    return folder


class Exporting(Exception):  # noqa: N818 - what a test waits for
    """torch's exporter is asked for a graph."""


@pytest.fixture
def stop_exporter(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def export(*_: object, **__: object) -> None:
        raise Exporting

    return lambda: monkeypatch.setattr("torch.onnx.export", export)


def network_of(seed: int, **options: object) -> Network:
    torch.manual_seed(seed)
    network = create_network("test_resnet", CLASSES, image_size=SIDE, **options)  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return network.eval()


def novelty_of(network: Network, seed: int) -> Novelty:
    means = np.random.default_rng(seed).normal(size=(CLASSES, network.num_features)).astype(np.float32)
    return Novelty(means / np.linalg.norm(means, axis=1, keepdims=True), 2.0 + seed, 0.1 * seed, 0.95, 100)


def exported(file: Path, seed: int) -> np.ndarray:
    """Export with what depends on the seed; returns how far the file is from the network."""
    network = network_of(seed)
    novelty, temperature = novelty_of(network, seed), 1.5 + seed
    assert export_onnx(network, PREPROCESSING, file, temperature, novelty)
    images = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = as_columns(Exported(network, temperature, novelty)(images))
    return np.abs(OnnxEngine(file).outputs(images.numpy()) - expected).max()  # type: ignore[no-any-return]


def test_other_weights_are_put_into_the_kept_graph(
    tmp_path: Path, graphs: Path, stop_exporter: Callable[[], None]
) -> None:
    assert exported(tmp_path / "first.onnx", seed=0) < 1e-4
    stop_exporter()
    assert exported(tmp_path / "second.onnx", seed=1) < 1e-4
    assert exported(tmp_path / "again.onnx", seed=0) == exported(tmp_path / "first.onnx", seed=0)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()
    (kept,) = graphs.glob("*.onnx")
    assert kept.stat().st_size < 100_000, "no weights"
    for file in (kept, tmp_path / "second.onnx"):
        assert str(Path(torch.__file__).parent.parent).encode() not in file.read_bytes(), "no paths of this machine"


class Own(nn.Identity):
    """A layer of whoever uses the library, whose code may change under the same name."""


def test_a_graph_that_may_be_another_one_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_exporter: Callable[[], None]
) -> None:
    file, options = tmp_path / "model.onnx", {"image_size": SIDE}
    assert export_onnx(network_of(0), PREPROCESSING, file)
    stop_exporter()
    assert export_onnx(network_of(1), PREPROCESSING, file)
    larger = Preprocessing(image_size=2 * SIDE, resize=2 * SIDE)
    for network, preprocessing in [
        (network_of(0, views="flip"), PREPROCESSING),
        (create_network("test_resnet", CLASSES + 1, **options), PREPROCESSING),
        (network_of(0), larger),
    ]:
        with pytest.raises(Exporting):
            export_onnx(network, preprocessing, file)
    with pytest.raises(Exporting):
        export_onnx(network_of(0), PREPROCESSING, file, temperature=2.0)
    for layer in (Own(), nn.LeakyReLU(0.2)):  # of which a head may be made, whose slope its architecture does not say
        network = network_of(0)
        network.backbone.add_module("own", layer)
        monkeypatch.setattr("imgcls.portable.exporter.network_with_weights", lambda *_, network=network: network)
        with pytest.raises(Exporting):
            export_onnx(network, PREPROCESSING, file)


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_a_damaged_graph_is_not_read(
    tmp_path: Path, kept_graphs: Path, graphs: Path, stop_exporter: Callable[[], None], content: bytes
) -> None:
    graphs.symlink_to(kept_graphs)
    assert export_onnx(network_of(0), PREPROCESSING, tmp_path / "model.onnx")
    graphs.unlink()
    graphs.mkdir()
    for kept in kept_graphs.glob("*.onnx"):
        (graphs / kept.name).write_bytes(content)
    stop_exporter()
    with pytest.raises(Exporting):
        export_onnx(network_of(0), PREPROCESSING, tmp_path / "model.onnx")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, graphs: Path) -> None:
    graphs.write_text("a file in its place")
    assert exported(tmp_path / "model.onnx", seed=0) < 1e-4
