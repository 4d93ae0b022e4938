"""A model of the handwritten digits with a reference, and streams of other digits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from imgcls import portable
from imgcls.monitoring.measures import Measures, measure
from imgcls.monitoring.reference import FILE, Reference, fit_reference
from imgcls.portable.novelty import fit_novelty

SIDE = 24


class Digits(NamedTuple):
    """A model, its folder, its reference, and images that neither has seen, with their classes."""

    folder: Path
    model: portable.PortableModel
    reference: Reference
    images: list[Image.Image]
    labels: np.ndarray

    def measures(self, images: list[Image.Image]) -> Measures:
        """What is watched of `images`."""
        preprocessing = self.model.preprocessing
        pixels = np.stack([preprocessing.pixels(image) for image in images])
        return self.reference.project(measure(self.model, preprocessing.normalise(pixels)))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Random features with a head that is solved on 500 digits; 900 others are the reference."""
    import torch
    from sklearn.datasets import load_digits

    from imgcls.images.preprocessing import Preprocessing
    from imgcls.models.backbones import create_network
    from imgcls.models.logistic import solve

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels = np.clip(found.images[order] * 12 + 30, 0, 255).astype(np.uint8)
    images = [
        Image.fromarray(values).convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST) for values in pixels
    ]
    labels = found.target[order]
    torch.manual_seed(0)
    network = create_network("test_resnet", 10).eval()
    preprocessing = Preprocessing(SIDE, SIDE)
    with torch.inference_mode():
        inputs = preprocessing.normalise(np.stack([preprocessing.pixels(image) for image in images[:900]]))
        features, held_out = network.features(torch.from_numpy(inputs)).split([500, 400])
    head = solve(features, torch.from_numpy(labels[:500]), 10)
    novelty = fit_novelty(features.numpy(), labels[:500], held_out.numpy(), 0.95)
    layer = next(layer for layer in network.head.modules() if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(head.weight)
        layer.bias.copy_(head.bias)
    folder = tmp_path_factory.mktemp("digits") / "model"
    names = [str(number) for number in range(10)]
    portable.export(
        network,
        preprocessing=preprocessing,
        class_names=names,
        metrics={},
        folder=folder,
        onnx=False,
        novelty=novelty,
    )
    model = portable.load(folder)
    reference = fit_reference(model, zip(images[500:1400], labels[500:1400].tolist(), strict=True))
    reference.save(folder / FILE)
    return Digits(folder, model, reference, images[1400:], labels[1400:])
