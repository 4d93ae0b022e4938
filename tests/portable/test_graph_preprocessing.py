"""A graph with its preprocessing makes of any decoded image what Pillow makes of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.errors import UserError
from imgcls.images.decoding import open_picture
from imgcls.images.preprocessing import Preprocessing
from imgcls.portable.graph_preprocessing import CLASS_NAMES, METADATA, PROBABILITIES, add_preprocessing, denormalise
from tests.inputs.images import encoded, grey_tiff, noise

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZES = ((1, 1), (1, 40), (900, 30), (24, 24), (36, 50), (500, 375), (5, 7), (640, 1200), (24, 40))


def with_core(preprocessing: Preprocessing, **options: Any) -> Any:
    """A graph whose scores are the means of the channels, and which also returns the normalised images."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    channels, shape = preprocessing.channels, ["batch", preprocessing.channels, *preprocessing.shape]
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["scores"], keepdims=0),
        helper.make_node("Identity", ["images"], ["same"]),
    ]
    values = (("images", shape), ("scores", ["batch", channels]), ("same", shape))
    images, *outputs = (helper.make_tensor_value_info(name, float32, sizes) for name, sizes in values)
    axes = onnx.numpy_helper.from_array(np.array([2, 3]), "axes")
    graph = helper.make_graph(nodes, "core", [images], outputs, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    add_preprocessing(model, preprocessing, [str(number) for number in range(channels)], **options)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def grey_levels(session: Any, pixels: np.ndarray) -> np.ndarray:
    """What the graph makes of one decoded image, before normalisation."""
    [normalised] = session.run(["same"], {"pixels": pixels[None]})
    to_pixels = denormalise(session.get_modelmeta().custom_metadata_map)
    assert to_pixels is not None
    return to_pixels(normalised)[0]


def smooth(width: int, height: int) -> Image.Image:
    """Large coloured areas, whose edges overshoot in a bicubic filter."""
    return noise(max(2, width // 3), max(2, height // 3)).resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [24, (24, 40)], ids=["square", "rectangle"])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_an_image_of_any_size_becomes_what_pillow_makes_of_it(fit: str, size: Any, interpolation: str) -> None:
    preprocessing = Preprocessing(size, 36, fit=fit, interpolation=interpolation, pad_colour=(9, 99, 200))
    session, differences = with_core(preprocessing), []
    for width, height in SIZES:
        image = smooth(width, height)
        expected, found = preprocessing.pixels(image), grey_levels(session, np.asarray(image))
        differences.append(np.abs(found.astype(int) - expected).ravel())
        if image.size == preprocessing.shape[::-1]:  # which is not resampled, not even with a margin
            assert (found == expected).all()
    together = np.concatenate(differences)
    assert together.max() <= 2  # Pillow 13 resamples some sizes in the other order, and rounds in between
    assert (together > 0).mean() < 0.1
    assert together.mean() < 0.1


def test_odd_files_are_as_pillow_decodes_them() -> None:
    preprocessing = Preprocessing(24, 36)
    session, exif = with_core(preprocessing), Image.Exif()
    exif[0x0112] = 6
    files = {
        "grey": encoded(smooth(50, 70).convert("L")),
        "alpha": encoded(smooth(50, 70).convert("RGBA")),
        "turned": encoded(smooth(50, 70), "JPEG", exif=exif),
        "sixteen bits": grey_tiff(np.arange(16, dtype="<u2").tobytes(), 16),
        "palette": encoded(smooth(50, 70).convert("P"), "GIF"),
    }
    for name, content in files.items():
        image = open_picture(io.BytesIO(content).getvalue())
        found = grey_levels(session, np.asarray(image)).astype(int)
        assert np.abs(found - preprocessing.pixels(image)).max() <= 1, name


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (4, 16)])
def test_other_channels_and_bits(channels: int, bits: int) -> None:
    preprocessing = Preprocessing(24, 36, channels=channels, bits=bits)
    values = np.repeat(np.asarray(smooth(50, 70))[..., :1], channels, axis=2)
    pixels = values if bits == 8 else values.astype(np.uint16) * 257 + 5
    found = grey_levels(with_core(preprocessing), pixels)
    assert np.abs(found.astype(int) - preprocessing.pixels(preprocessing.open(pixels))).max() <= 1


@pytest.mark.parametrize("multilabel", [False, True])
def test_probabilities_and_metadata(multilabel: bool) -> None:
    preprocessing = Preprocessing(24, 36)
    session = with_core(preprocessing, multilabel=multilabel)
    pixels = np.stack([np.asarray(smooth(50, 70)), 255 - np.asarray(smooth(50, 70))])
    probabilities, scores, _ = session.run(None, {"pixels": pixels})
    powers = np.exp(scores)
    expected = powers / (1 + powers) if multilabel else powers / powers.sum(axis=1, keepdims=True)
    assert session.get_outputs()[0].name == PROBABILITIES
    assert np.allclose(probabilities, expected, atol=1e-6)
    metadata = session.get_modelmeta().custom_metadata_map
    assert Preprocessing.from_dict(json.loads(metadata[METADATA])) == preprocessing
    assert json.loads(metadata[CLASS_NAMES]) == ["0", "1", "2"]


def test_a_filter_that_cannot_be_the_same_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bilinear and bicubic alone; the model has nearest"):
        with_core(Preprocessing(24, 36, interpolation="nearest"))
