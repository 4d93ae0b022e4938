"""From an image to the model's input: the one way that validation, test, predict and serve share.

Needs only Pillow and numpy, so that a portable model can be served without torch's data stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from imgcls.errors import UserError, nearest
from imgcls.pictures import is_upright_rgb, open_picture

INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CACHE_VALUES = 1 << 17  # float32 values that stay in a core's cache between two operations


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side with antialiasing, crop the centre, normalise.

    An image that already has `image_size` x `image_size` pixels is not resampled.

    >>> Preprocessing(image_size=2, resize=2).pixels(Image.new("RGB", (4, 8), (255, 0, 0))).shape
    (2, 2, 3)
    """

    image_size: int
    """Side of the model's square input, px."""
    resize: int
    """Shorter side before the centre crop, px; at least `image_size`."""
    interpolation: str = "bicubic"
    """Name of Pillow's filter; one of INTERPOLATIONS."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from red, green, blue in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides the differences, per channel."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(f"image_size={self.image_size} must be at least 1 pixel.")
        if self.resize < self.image_size:
            raise UserError(
                f"resize={self.resize} is smaller than image_size={self.image_size}: the centre crop would not fit. "
                f"Set resize to {self.image_size} or more."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation={self.interpolation}: {nearest(self.interpolation, INTERPOLATIONS)}")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise UserError(f"{name}={list(values)} must be three numbers, for red, green and blue; std above 0.")
            object.__setattr__(self, name, values)

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """The image as uint8 (image_size, image_size, 3), before normalisation.

        The same as torchvision's Resize(resize) and CenterCrop(image_size) on a PIL image, in one resampling that
        computes only what the crop keeps.
        """
        if not is_upright_rgb(picture):
            picture = open_picture(picture)
        size, (width, height) = self.image_size, picture.size
        if (width, height) == (size, size):
            return np.array(picture, dtype=np.uint8)
        short = min(width, height)
        scaled_width, scaled_height = self.resize * width // short, self.resize * height // short
        left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
        if short == self.resize:
            return np.array(picture.crop((left, top, left + size, top + size)), dtype=np.uint8)
        x, y = width / scaled_width, height / scaled_height
        box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
        return np.array(picture.resize((size, size), INTERPOLATIONS[self.interpolation], box=box), dtype=np.uint8)

    def normalise(self, pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (N, H, W, 3) to float32 (N, 3, H, W), into `out` if given: minus the mean, divided by the std.

        Subtraction before multiplication, in float32: no fused operation can round it differently, so the result is
        bit for bit what the data module computes on any device.
        """
        offset, scale = self.offset_and_scale()
        channels_first = np.moveaxis(np.asarray(pixels), -1, 1)
        if out is None:
            out = np.empty(channels_first.shape, dtype=np.float32)
        step = max(1, CACHE_VALUES // max(1, out[0].size)) if len(out) else 1
        for start in range(0, len(out), step):
            part = out[start : start + step]
            part[...] = channels_first[start : start + step]
            part -= offset[:, None, None]
            part *= scale[:, None, None]
        return out

    def offset_and_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Two float32 (3,) arrays: normalised = (value in 0..255 - offset) * scale."""
        offset = 255.0 * np.asarray(self.mean, dtype=np.float64)
        scale = 1.0 / (255.0 * np.asarray(self.std, dtype=np.float64))
        return offset.astype(np.float32), scale.astype(np.float32)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `as_dict`, after a round trip through JSON."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
