"""From an image to the model's input: the one way that validation, test, predict and serve share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from imgcls.errors import UserError, nearest
from imgcls.images.channels import MAX_CHANNELS, RGB, STEP, TOP, Depth, Planes, open_planes, spread
from imgcls.images.decoding import MAX_PIXELS, Source, open_picture
from imgcls.images.rgb import is_upright_rgb

INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FITS = ("crop", "pad", "squash")
PAD_COLOUR = (124, 116, 104)
"""ImageNet's mean colour, which is about zero after normalisation."""
CACHE_VALUES = 1 << 17  # float32 values that stay in a core's cache between two operations


Size = int | tuple[int, int]
"""Side of a square, or (height, width), px."""


def sides(size: Any) -> tuple[int, int]:
    """(height, width) of a Size, which JSON and Hydra turn into a list."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def as_size(size: Any) -> Size:
    """The simplest form of a Size: an integer for a square."""
    height, width = sides(size)
    return height if height == width else (height, width)


@dataclass(frozen=True)
class Preprocessing:
    """Fit the image into the model's input with antialiasing, and normalise it.

    `crop` resizes the shorter side and cuts the centre out, `pad` keeps the whole image and adds a border, `squash`
    keeps it and changes its aspect ratio. An image that already has the size of the input is not resampled.

    >>> Preprocessing(image_size=2, resize=2).pixels(Image.new("RGB", (4, 8), (255, 0, 0))).shape
    (2, 2, 3)
    """

    image_size: Size
    """Side of the model's square input, or its (height, width), px."""
    resize: int
    """With `crop`, shorter side before the centre crop, px; at least that of `image_size`."""
    interpolation: str = "bicubic"
    """Name of Pillow's filter; one of INTERPOLATIONS."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from the channels, red, green and blue, in 0..1."""
    std: tuple[float, ...] = IMAGENET_STD
    """Divides the differences, per channel."""
    fit: str = "crop"
    """How images of other aspect ratios fit; one of FITS."""
    pad_colour: tuple[int, int, int] = PAD_COLOUR
    """Red, green and blue in 0..255 of the border with `pad`; of other channels their mean."""
    channels: int = 3
    """Of the model's input."""
    bits: int = 8
    """Of the pixels: 8, or 16."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_size(self.image_size))
        if min(self.shape) < 1:
            raise UserError(f"image_size={self.image_size} must be at least 1 pixel.")
        if self.fit not in FITS:
            raise UserError(f"fit={self.fit}: {nearest(self.fit, FITS)}")
        object.__setattr__(self, "pad_colour", tuple(int(value) for value in self.pad_colour))
        if len(self.pad_colour) != 3 or not all(0 <= value <= 255 for value in self.pad_colour):
            raise UserError(f"pad_colour={list(self.pad_colour)} must be three numbers in 0..255: red, green and blue.")
        if self.fit == "crop" and self.resize < min(self.shape):
            raise UserError(
                f"resize={self.resize} is smaller than image_size={self.image_size}: the centre crop would not fit. "
                f"Set resize to {min(self.shape)} or more."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation={self.interpolation}: {nearest(self.interpolation, INTERPOLATIONS)}")
        if not 1 <= self.channels <= MAX_CHANNELS or self.bits not in TOP:
            raise UserError(f"channels={self.channels}, bits={self.bits}: 1 to {MAX_CHANNELS}, of 8 or 16 bits.")
        for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            values = tuple(float(value) for value in getattr(self, name))
            values = spread(values, self.channels) if values == default else values
            count = self.channels
            if len(values) != count or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
                each = "three numbers, for red, green and blue" if count == 3 else f"{count} numbers, one a channel"
                raise UserError(f"{name}={list(values)} must be {each}; std above 0.")
            object.__setattr__(self, name, values)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the model's input, px."""
        return sides(self.image_size)

    @property
    def depth(self) -> Depth:
        """Channels and bits of the pixels."""
        return Depth(self.channels, self.bits)

    def open(self, source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image | Planes:
        """The image with the channels that the model takes, see `open_picture` and `open_planes`. Raises BadPicture."""
        return open_picture(source, max_pixels) if self.depth == RGB else open_planes(source, self.depth, max_pixels)

    def pixels(self, picture: Image.Image | Planes) -> np.ndarray:
        """The image as uint8 (H, W, 3), before normalisation; with other channels and bits, uint8 or uint16 (H, W, C).

        With `crop` the same as torchvision's Resize(resize) and CenterCrop(image_size) on a PIL image, in one
        resampling that computes only what the crop keeps.
        """
        if self.depth != RGB or isinstance(picture, Planes):
            picture = open_planes(picture, self.depth)
        elif not is_upright_rgb(picture):
            picture = open_picture(picture)
        if picture.size == self.shape[::-1]:
            return self._array(picture)
        if self.fit == "squash":
            return self._array(self._resized(picture, *self.shape))
        if self.fit == "pad":
            return self._padded(picture)
        return self._cropped(picture) if isinstance(self.image_size, int) else self._cropped_to_shape(picture)

    def _array(self, picture: Image.Image | Planes) -> np.ndarray:
        return np.array(picture, dtype=self.depth.type)

    def _resized(self, picture: Image.Image | Planes, height: int, width: int) -> Image.Image | Planes:
        same = picture.size == (width, height)
        return picture if same else picture.resize((width, height), INTERPOLATIONS[self.interpolation])

    def _padded(self, picture: Image.Image | Planes) -> np.ndarray:
        """The largest copy of the whole image that fits, in the middle of a border."""
        (height, width), (old_width, old_height) = self.shape, picture.size
        scale = min(height / old_height, width / old_width)
        inner_height = min(height, max(1, round(old_height * scale)))
        inner_width = min(width, max(1, round(old_width * scale)))
        out = np.empty((height, width, self.channels), dtype=self.depth.type)
        border = spread(self.pad_colour, 1) if self.channels != 3 else self.pad_colour
        out[:] = np.rint(border).astype(self.depth.type) * (STEP if self.bits == 16 else 1)
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        inner = self._resized(picture, inner_height, inner_width)
        out[top : top + inner_height, left : left + inner_width] = np.asarray(inner)
        return out

    def _cropped_to_shape(self, picture: Image.Image | Planes) -> np.ndarray:
        """The centre, with the aspect ratio of the input, of an image that covers it with the margin of `resize`."""
        (height, width), (old_width, old_height) = self.shape, picture.size
        covered = max(height / old_height, width / old_width)  # scale at which the image covers the input
        scale = covered * self.resize / min(height, width)
        box_width, box_height = min(width / scale, old_width), min(height / scale, old_height)
        left, top = (old_width - box_width) / 2, (old_height - box_height) / 2
        box = (left, top, left + box_width, top + box_height)
        resized = picture.resize((width, height), INTERPOLATIONS[self.interpolation], box=box)
        return self._array(resized)

    def _cropped(self, picture: Image.Image | Planes) -> np.ndarray:
        """The central square."""
        assert isinstance(self.image_size, int)
        size, (width, height) = self.image_size, picture.size
        short = min(width, height)
        scaled_width, scaled_height = self.resize * width // short, self.resize * height // short
        left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
        if short == self.resize:
            return self._array(picture.crop((left, top, left + size, top + size)))
        x, y = width / scaled_width, height / scaled_height
        box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
        return self._array(picture.resize((size, size), INTERPOLATIONS[self.interpolation], box=box))

    def normalise(self, pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 or uint16 (N, H, W, C) to float32 (N, C, H, W), into `out` if given: minus the mean, by the std.

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
            if pixels.dtype == np.uint16:
                part /= STEP
            part -= offset[:, None, None]
            part *= scale[:, None, None]
        return out

    def offset_and_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Two float32 (C,) arrays: normalised = (value in 0..255 - offset) * scale."""
        offset = 255.0 * np.asarray(self.mean, dtype=np.float64)
        scale = 1.0 / (255.0 * np.asarray(self.std, dtype=np.float64))
        return offset.astype(np.float32), scale.astype(np.float32)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        usual = {"channels": RGB.channels, "bits": RGB.bits}  # which are left out, as in earlier formats
        return {name: value for name, value in values.items() if usual.get(name) != value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `as_dict`, after a round trip through JSON."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})
