"""Images as worse cameras take them, from which the estimate of the accuracy learns what confidence is worth there.

A calibration that is fitted on clean images alone is too sure of worse ones; perturbed validation images repair it
(Tomani et al. 2021, "Post-hoc uncertainty calibration for domain drift scenarios").
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Perturbation = Callable[[Image.Image, float, np.random.Generator], Image.Image]
"""Takes an RGB image, a strength in 0..1 and a source of randomness."""


def darken(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """Less light, down to a fifth."""
    return _scaled(image, 1 - 0.8 * strength, 0)


def brighten(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """Too much light, in which bright parts are lost."""
    return _scaled(image, 1 + 1.5 * strength, 30 * strength)


def fade(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """Less contrast, around the image's own mean."""
    factor = 1 - 0.85 * strength
    return _scaled(image, factor, float(np.asarray(image).mean()) * (1 - factor))


def blur(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """Out of focus, by up to a sixteenth of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(strength * min(image.size) / 16))


def grain(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """The noise of little light, independent in each pixel and channel."""
    pixels = np.asarray(image, dtype=np.float32)
    return _image(pixels + dice.normal(0, 60 * strength, pixels.shape))


def shrink(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """The details of a thumbnail, of down to a third of the size."""
    size = [max(1, round(side / (1 + 2 * strength))) for side in image.size]
    way = (Image.Resampling.BOX, Image.Resampling.BICUBIC)[dice.integers(2)]
    return image.resize(size, Image.Resampling.BOX).resize(image.size, way)


def compress(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """The artefacts of JPEG, down to a quality of 5."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=round(60 - 55 * strength))
    return Image.open(buffer).convert("RGB")


PERTURBATIONS: dict[str, Perturbation] = {
    "darkened": darken,
    "brightened": brighten,
    "faded": fade,
    "blurred": blur,
    "noisy": grain,
    "shrunk": shrink,
    "compressed": compress,
}
"""By what images look like after them."""


def _scaled(image: Image.Image, factor: float, offset: float) -> Image.Image:
    return _image(np.asarray(image, dtype=np.float32) * factor + offset)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
