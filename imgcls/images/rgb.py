"""Decoded images of any mode as RGB, upright."""

from __future__ import annotations

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, what turns the image upright."""
STRIP_PIXELS = 1 << 20
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF


def is_upright_rgb(image: Image.Image) -> bool:
    """Whether `open_picture` would leave the pixels of `image` unchanged."""
    return image.mode == "RGB" and "transparency" not in image.info and orientation_of(image) == 1


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of `image`, 1 to 8; 1, upright, where it has none that can be read."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken metadata in an intact image
        return 1
    return orientation if orientation in TRANSPOSES else 1


def _grey_of(image: Image.Image) -> np.ndarray:
    """The uint8 grey values of an image of 9 to 16 bits, by what its file says of depth, meaning and transparency."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = int(np.max(tags.get(BITS_PER_SAMPLE, 16)))
    grey = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB; itself if it is. Others are converted in strips: they need up to 24 bytes per pixel."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray(_grey_of(image)).convert("RGB")
    rows = max(1, STRIP_PIXELS // image.width)
    boxes = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    top_value = 0.0
    if image.mode in ("I", "F"):
        top_value = max(float(_finite(image.crop(box)).max()) for box in boxes)
    rgb = Image.new("RGB", image.size)
    for box in boxes:
        rgb.paste(_strip_to_rgb(image.crop(box), top_value), box)
    return rgb


def _strip_to_rgb(strip: Image.Image, top_value: float) -> Image.Image:
    if strip.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(_finite(strip), strip.mode == "F", top_value)).convert("RGB")
    if strip.has_transparency_data:
        coloured = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, coloured).convert("RGB")
    return strip.convert("RGB")


def _finite(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image).astype(np.float64))


def _eight_bits(values: np.ndarray, is_float: bool, top_value: float) -> np.ndarray:
    """Grey values as uint8; the largest value of the image decides between 0..1, 0..255 and 0..65535."""
    if is_float and top_value <= 1.0:
        values = values * 255.0
    elif top_value > 255.0:
        values = values / 257.0
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
