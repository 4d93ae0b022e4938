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
    """Less contrast, around the image's own mean or, as in fog, around a lighter grey that varies over the image."""
    factor = 1 - 0.85 * strength
    if dice.integers(2):
        return _scaled(image, factor, float(np.asarray(image).mean()) * (1 - factor))
    coarse = Image.fromarray(dice.uniform(100, 255, (3, 3)).astype(np.uint8))
    veil = np.asarray(coarse.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float32)[..., None]
    return _image(np.asarray(image, dtype=np.float32) * factor + veil * (1 - factor))


def discolour(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """Another white balance, and more or less colour: from none to three times as much."""
    pixels = np.asarray(image, dtype=np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    factor = 1 - strength if dice.integers(2) else 1 + 2 * strength
    return _image((grey + factor * (pixels - grey)) * (1 + strength * dice.uniform(-0.3, 0.3, 3)))


def blur(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """Out of focus, by up to a sixteenth of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(strength * min(image.size) / 16))


def shake(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """Moved in any direction while it was taken, by up to a fifth of the shorter side."""
    length, angle = strength * min(image.size) / 5, dice.uniform(0, np.pi)
    edge = int(length / 2) + 2
    padded = Image.fromarray(np.pad(np.asarray(image), ((edge, edge), (edge, edge), (0, 0)), "edge"))
    total = np.zeros((*image.size[::-1], 3), np.float32)
    places = np.linspace(-length / 2, length / 2, max(2, round(length) + 1))
    for place in places:
        way = (1, 0, edge + place * np.cos(angle), 0, 1, edge + place * np.sin(angle))
        total += np.asarray(padded.transform(image.size, Image.Transform.AFFINE, way, Image.Resampling.BILINEAR))
    return _image(total / len(places))


def grain(image: Image.Image, strength: float, dice: np.random.Generator) -> Image.Image:
    """The noise of a sensor, independent in each pixel: of its electronics, of little light, or of dead pixels."""
    pixels = np.asarray(image, dtype=np.float32)
    match dice.integers(3):
        case 0:
            return _image(pixels + dice.normal(0, 60 * strength, pixels.shape))
        case 1:
            photons = 10 ** (2.5 - 1.5 * strength)  # of white, in each pixel
            return _image(dice.poisson(pixels / 255 * photons) / photons * 255)
    dead = dice.random(pixels.shape[:2]) < 0.2 * strength
    return _image(np.where(dead[..., None], 255.0 * dice.integers(0, 2, (*pixels.shape[:2], 1)), pixels))


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
    "discoloured": discolour,
    "blurred": blur,
    "shaken": shake,
    "noisy": grain,
    "shrunk": shrink,
    "compressed": compress,
}
"""By what images look like after them."""


def _scaled(image: Image.Image, factor: float, offset: float) -> Image.Image:
    return _image(np.asarray(image, dtype=np.float32) * factor + offset)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
