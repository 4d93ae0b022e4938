"""What is watched of each image: the model's answer, and how bright, contrasting and sharp the image itself is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from imgcls.portable import PortableModel
from imgcls.portable.model import softmax

SMALLEST = 1e-6


@dataclass(frozen=True)
class Measures:
    """Numbers of N images.

    Attributes:
        predicted: int64 (N,), the likeliest class.
        confidence: float32 (N,), its probability.
        margin: float32 (N,), the logarithm of its probability over that of the second.
        entropy: float32 (N,), of the probabilities, nats.
        novelty: float32 (N,), NaN of a model that does not know unknown images.
        brightness: float32 (N,), the mean of the pixels in 0..1.
        contrast: float32 (N,), their standard deviation.
        sharpness: float32 (N,), the logarithm of the mean difference of a pixel from its neighbours.
        detail: float32 (N,), see `_detail`.
        features: float32 (N, F), what the network's head classifies, or a projection of it.
    """

    predicted: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray
    entropy: np.ndarray
    novelty: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    sharpness: np.ndarray
    detail: np.ndarray
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.predicted)

    def __getitem__(self, chosen: slice | np.ndarray) -> Measures:
        return Measures(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[Measures]) -> Measures:
        """All images of the `parts`, at least one."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def measure(model: PortableModel, images: np.ndarray) -> Measures:
    """The numbers of float32 (N, C, S, S) images, normalised as the model takes them; its engine must be torch."""
    outputs, features = _outputs(model, images)
    classes = len(model.class_names)
    probabilities = softmax(outputs[:, :classes])
    predicted = probabilities.argmax(axis=1)
    highest, second = -np.partition(-probabilities, 1, axis=1)[:, :2].T
    logarithms = np.log(np.maximum(probabilities, SMALLEST))
    offset, scale = (values[:, None, None] for values in model.preprocessing.offset_and_scale())
    grey = ((images / scale + offset) / 255).mean(axis=1)
    around = (grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]) / 4
    rough = np.abs(grey[:, 1:-1, 1:-1] - around).mean(axis=(1, 2))
    nothing = np.full(len(images), np.nan, np.float32)
    return Measures(
        predicted=predicted.astype(np.int64),
        confidence=highest,
        margin=np.log(highest / np.maximum(second, SMALLEST)),
        entropy=-(probabilities * logarithms).sum(axis=1),
        novelty=outputs[:, classes] if outputs.shape[1] > classes else nothing,
        brightness=grey.mean(axis=(1, 2)),
        contrast=grey.std(axis=(1, 2)),
        sharpness=np.log(rough + 1e-4),
        detail=_detail(grey),
        features=features,
    )


def _detail(grey: np.ndarray) -> np.ndarray:
    """float32 (N,) of (N, H, W) pixels in 0..1: how different neighbours are, as the logarithm of the ratio to how
    different they are at half the resolution, in the direction that has least of it.

    Natural images have about the same at all scales (Field 1987); out of focus they have less of the finer one, and
    after a movement of the camera along it.
    """
    height, width = (side // 2 * 2 for side in grey.shape[1:])
    grey = grey[:, :height, :width]
    coarse = grey.reshape(len(grey), height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    ratios = [_roughness(grey, *step) - _roughness(coarse, *step) for step in ((0, 1), (1, 1), (1, 0), (1, -1))]
    return np.min(ratios, axis=0).astype(np.float32)


def _roughness(pixels: np.ndarray, down: int, right: int) -> np.ndarray:
    """The logarithm of the mean difference of a pixel from the one that is so far down and right."""
    height, width = pixels.shape[1:]
    first = pixels[:, : height - down, max(0, -right) : width - max(0, right)]
    second = pixels[:, down:, max(0, right) : width - max(0, -right)]
    return np.asarray(np.log(np.abs(first - second).mean(axis=(1, 2)) + 1e-4))


def _outputs(model: PortableModel, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outputs, and the features (N, F) from which the head computed them, in the mean over the views."""
    seen = []
    hook = model.network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu().numpy()))
    try:
        outputs = model.engine.outputs(images)
    finally:
        hook.remove()
    return outputs, np.mean(seen, axis=0)
