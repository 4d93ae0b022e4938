"""JPEG files: decoded by libjpeg-turbo itself, the pixels of Pillow in half the time, and small ones for pages."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

SMALLEST = 16
"""px; a smaller side may be as long at seven eighths of the size, which libjpeg-turbo would take then."""


def decode_jpeg(content: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """The pixels of a file in colour, uint8 (H, W, 3), to the bit those of Pillow; None where Pillow has to decode it.

    Args:
        content: of the file.
        size: width and height that Pillow would decode it at, px: its own, or a half, a quarter or an eighth of that.
    """
    library = _library()
    if library is None or min(size) < SMALLEST:
        return None
    width, height = size
    try:
        pixels: np.ndarray = library.decode_jpeg(content, min_width=width, min_height=height)
    except ValueError:  # also what Pillow has patience with
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def encode_jpeg(image: Image.Image, side: int, quality: int, *, subsampling: int = -1, optimize: bool = False) -> bytes:
    """A JPEG of up to `side` pixels each way, without metadata; the other options are Pillow's.

    `optimize` is for low qualities: Pillow has no room for a file with more bytes than the image has pixels then.
    """
    small = image.convert("RGB")
    small.thumbnail((side, side))
    clean = Image.frombytes("RGB", small.size, small.tobytes())
    buffer = io.BytesIO()
    clean.save(buffer, "JPEG", quality=quality, subsampling=subsampling, optimize=optimize)
    return buffer.getvalue()


def is_installed() -> bool:
    """Whether `decode_jpeg` has its library, the extra `jpeg`."""
    return _library() is not None


@cache
def _library() -> Any:
    try:
        import simplejpeg
    except Exception:  # not installed, or built for another numpy
        return None
    return simplejpeg
