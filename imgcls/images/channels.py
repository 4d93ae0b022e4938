"""Images of any number of channels, with 8 or 16 bits: grey images, `.npy` files, TIFF files with pages or bands.

TIFF files that Pillow does not read need tifffile.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imgcls.images.decoding import (
    MAX_PIXELS,
    NPY_MAGIC,
    BadPicture,
    HugePicture,
    Source,
    open_picture,
    open_unconverted,
    read_npy,
)
from imgcls.images.paths import read_member
from imgcls.images.rgb import BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TOP = {8: 255, 16: 65535}
"""The largest value by the number of bits."""
STEP = 257
"""Of 16-bit values for each of 8 bits: 255 becomes 65535."""
MAX_CHANNELS = 64


class Depth(NamedTuple):
    """What the pixels of a data set are."""

    channels: int = 3
    """1: grey; 3: red, green and blue; others: the bands or pages of a file, in its order."""
    bits: int = 8
    """8, or 16, which keeps what files with more than 8 have."""

    @property
    def type(self) -> type[np.uint8] | type[np.uint16]:
        """Of the pixels."""
        return np.uint8 if self.bits == 8 else np.uint16


RGB = Depth()


class Planes:
    """An image of any number of channels, with what `Preprocessing` needs of Pillow's images.

    Args:
        values: uint8 or uint16 (H, W, C).
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.height, self.width = values.shape[:2]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.width, self.height

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def crop(self, box: tuple[int, int, int, int]) -> Planes:
        """The pixels of the box left, top, right, bottom."""
        left, top, right, bottom = box
        return Planes(self.values[top:bottom, left:right])

    def resize(
        self, size: tuple[int, int], resample: Image.Resampling, box: tuple[float, float, float, float] | None = None
    ) -> Planes:
        """As Pillow does it, channel by channel."""
        is_deep = self.values.dtype == np.uint16
        planes = []
        for channel in range(self.values.shape[2]):
            plane = self.values[..., channel]
            image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32 if is_deep else np.uint8))
            planes.append(np.asarray(image.resize(size, resample, box=box)))
        values = np.stack(planes, axis=2)
        return Planes(np.clip(np.rint(values), 0, TOP[16]).astype(np.uint16) if is_deep else values)

    def preview(self) -> Image.Image:
        """The image for people: its first three channels, or the first as grey."""
        return preview(self.values)


def preview(values: np.ndarray) -> Image.Image:
    """uint8 or uint16 (H, W, C) as an image for people: the first three channels, or the first as grey."""
    eight = (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
    shown = eight[..., :3] if eight.shape[2] >= 3 else eight[..., 0]
    return Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")


def open_planes(source: Source | Planes, depth: Depth, max_pixels: int = MAX_PIXELS) -> Planes:
    """The image with the channels and bits of `depth`, fully decoded and upright.

    Grey is computed from colours, and three channels from grey; another number of channels must be that of the file.
    Arrays and `.npy` files are (H, W), (H, W, C) or (C, H, W), of whole numbers, or of floats in 0..1. 8-bit values are
    scaled to 16 bits and the other way round.

    Args:
        source: as for `open_picture`.
        depth: channels and bits.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        BadPicture: the image cannot be read, or has another number of channels.
    """
    if isinstance(source, str | Path):
        try:
            source = read_member(str(source)) or source
        except OSError as error:
            raise BadPicture(str(error.strerror or error)) from error
    if isinstance(source, Planes):
        values = source.values
    elif isinstance(source, np.ndarray):
        values = source
    elif isinstance(source, Image.Image):
        values = _bands(source, depth, max_pixels)
    else:
        head = _head(source)
        if head.startswith(NPY_MAGIC):
            values = read_npy(_opened(source))
        elif head.startswith(TIFF_MAGICS):
            values = _tiff(source, depth, max_pixels)
        else:
            values = _bands(open_unconverted(source, max_pixels), depth, max_pixels)
    values = _channels_last(values, depth.channels)
    if values.shape[0] * values.shape[1] > max_pixels:
        raise HugePicture(f"{values.shape[1]}x{values.shape[0]}, more than {max_pixels:,} pixels")
    return Planes(_with_bits(values, depth.bits))


def _head(source: Path | str | bytes) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source[:8])
    try:
        with Path(source).open("rb") as file:
            return file.read(8)
    except OSError:
        return b""  # Pillow says what is wrong with the file


def _opened(source: Path | str | bytes) -> io.BytesIO:
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    try:
        return io.BytesIO(Path(source).read_bytes())
    except OSError as error:
        raise BadPicture(str(error.strerror or error)) from error


def _channels_last(values: np.ndarray, channels: int) -> np.ndarray:
    """An array as (H, W, C). Raises BadPicture where it is no image of that many channels."""
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or not values.size:
        raise BadPicture(f"an array of shape {values.shape}, not (height, width, {channels})")
    if values.shape[2] != channels and values.shape[0] == channels:
        values = np.moveaxis(values, 0, 2)
    if values.shape[2] == channels:
        return values
    if channels == 3 and values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    if channels == 1 and values.shape[2] == 3 and values.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(values)).convert("L"))[..., None]
    raise BadPicture(f"{min(values.shape[0], values.shape[2])} channels, not {channels}")


def _with_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers, or floats in 0..1, as uint8 or uint16."""
    if values.dtype == bool:
        values = values.astype(np.uint8) * TOP[8]
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise BadPicture(f"floats from {low:g} to {high:g}, not 0 to 1")
        return np.rint(values * TOP[bits]).astype(np.uint8 if bits == 8 else np.uint16)
    if values.dtype.kind not in "iu":
        raise BadPicture(f"an array of {values.dtype}, not of numbers")
    if values.dtype.itemsize > 1:
        if int(values.min()) < 0 or int(values.max()) > TOP[16]:
            raise BadPicture(f"values from {values.min()} to {values.max()}, not 0 to {TOP[16]}")
        deep = values.astype(np.uint16)
        return deep if bits == 16 else (deep >> 8).astype(np.uint8)
    if int(values.min()) < 0:
        raise BadPicture(f"values from {values.min()}, not from 0")
    return values.astype(np.uint8) if bits == 8 else values.astype(np.uint16) * STEP


def _bands(image: Image.Image, depth: Depth, max_pixels: int) -> np.ndarray:
    """The channels of one of Pillow's images, (H, W, C)."""
    bands = len(image.getbands())
    if image.mode.startswith("I;16") and depth.bits == 16 and depth.channels in (1, 3):
        return _grey16(image)[..., None]
    if depth.channels in (1, 3):
        rgb = open_picture(image, max_pixels)
        return np.asarray(rgb.convert("L"))[..., None] if depth.channels == 1 else np.asarray(rgb)
    if bands != depth.channels or image.mode == "P":
        raise BadPicture(f"{bands} channels, not {depth.channels}")
    return np.asarray(image).reshape(image.height, image.width, bands)


def _grey16(image: Image.Image) -> np.ndarray:
    """uint16 (H, W) of a grey image with 9 to 16 bits, scaled to 16."""
    tags = getattr(image, "tag_v2", {})
    used = int(np.max(tags.get(BITS_PER_SAMPLE, 16)))
    values = np.asarray(image).astype(np.uint16) << (16 - used)
    return TOP[16] - values if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else values


def _tiff(source: Path | str | bytes, depth: Depth, max_pixels: int) -> np.ndarray:
    """The pages or the bands of a TIFF file: with Pillow as far as it reads them, else with tifffile."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=("TIFF",)) as image:
            pages, bands = getattr(image, "n_frames", 1), len(image.getbands())
            loses_bits = (
                depth.bits == 16 and bands > 1 and int(np.max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, 8))) > 8
            )
            if pages == 1 and bands in (1, depth.channels, 3, 4) and not loses_bits and depth.channels in (1, 3, bands):
                return _bands(open_unconverted(source, max_pixels), depth, max_pixels)
            if pages == depth.channels and bands == 1:
                return np.stack([_page(image, page, max_pixels) for page in range(pages)], axis=2)
            if pages > 1 and depth.channels in (1, 3):
                return _bands(open_unconverted(source, max_pixels), depth, max_pixels)  # its first page
    except BadPicture:
        raise
    except Exception:  # Pillow has no mode for these bands; tifffile says what is wrong with a damaged file
        pass
    return _with_tifffile(source, depth, max_pixels)


def _page(image: Any, page: int, max_pixels: int) -> np.ndarray:
    image.seek(page)
    if image.width * image.height > max_pixels:
        raise HugePicture(f"{image.width}x{image.height}, more than {max_pixels:,} pixels")
    if image.mode.startswith("I;16"):
        return _grey16(image)
    return np.asarray(image.convert("L") if image.mode in ("1", "P") else image)


def _with_tifffile(source: Path | str | bytes, depth: Depth, max_pixels: int) -> np.ndarray:
    if importlib.util.find_spec("tifffile") is None:
        raise BadPicture("a TIFF file that needs tifffile: pip install 'imgcls[tiff]'")
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            series = file.series[0]
            axes, shape = series.axes, series.shape
            places = [axes.index(axis) for axis in "YX"]
            height, width = (shape[place] for place in places)
            channels = int(np.prod([side for place, side in enumerate(shape) if place not in places]))
            if height * width > max_pixels:
                raise HugePicture(f"{width}x{height}, more than {max_pixels:,} pixels")
            if channels != depth.channels:
                raise BadPicture(f"{channels} channels, not {depth.channels}")
            values = np.moveaxis(series.asarray(), places, (0, 1))
            return values.reshape(height, width, channels)
    except BadPicture:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise BadPicture(f"cannot be decoded ({' '.join(str(error).split())[:100]})") from error


def spread(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Means or standard deviations of red, green and blue for another number of channels.

    Grey has their mean; more channels repeat them, as timm repeats the weights of the first layer.
    """
    if channels == len(values):
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[channel % len(values)] for channel in range(channels))
