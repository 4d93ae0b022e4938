"""Opening an image of any format as RGB: the one way that training, evaluation, predict and serve share.

Needs only Pillow and numpy.
"""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

Source = Path | str | bytes | Image.Image | np.ndarray
MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded: a quarter of a gigabyte as RGB (Pillow's own limit)."""

PICTURE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".qoi"}
)
"""Lower-case suffixes of the files that count as images when a folder is searched."""

# Decoders that run in this process and recognise their files by the first bytes. Not EPS and PDF, whose decoders
# start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO", "AVIF", "HEIF", "JPEG2000", "PPM", "DIB", "ICO", "QOI")
ORIENTATION = 0x0112
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis")
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24  # bytes; sound files have comments and colour profiles of several MB

# The checks report these files in one list; Pillow's warnings would land in the middle of a progress bar.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "(Corrupt EXIF data|Truncated File Read|Metadata Warning)", UserWarning, r"PIL\.")


class BadPicture(ValueError):  # noqa: N818 (it is the image that is bad)
    """An image that cannot be used; `reason` is one short phrase."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HugePicture(BadPicture):
    """An image with more pixels than are decoded."""


def open_picture(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image, fully decoded, in mode RGB and upright.

    Animations give their first frame; grey, palette, CMYK and 16-bit images are converted; transparent parts become
    white; the EXIF orientation is applied. Colour profiles are ignored, as in torchvision.

    Args:
        source: a file, its bytes, a Pillow image, or an array: uint8 or uint16 (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4).
        max_pixels: larger images are refused before they are decoded; at most MAX_PIXELS.

    Raises:
        BadPicture: the file does not exist, is empty, truncated, too large, or not an image.
    """
    return decode(source, max_pixels)[0]


def decode(source: Source, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """`open_picture(source)` and the format of its content, such as 'JPEG' or 'PNG'; '' for an array."""
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, max_pixels)), ""
    if isinstance(source, Image.Image):
        return _load(source, max_pixels), source.format or ""
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise BadPicture("empty")
        file: io.BytesIO | str = io.BytesIO(source)
    elif isinstance(source, str | Path):
        file = str(source)
    else:
        raise BadPicture(f"a {type(source).__name__}, not a path, bytes, a Pillow image or an array")
    try:
        with Image.open(file, formats=_formats()) as image:
            return _load(image, max_pixels), image.format or ""
    except BadPicture:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise HugePicture(f"more than {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise BadPicture(_unidentified(file)) from error
    except FileNotFoundError as error:
        raise BadPicture("no such file") from error
    except IsADirectoryError as error:
        raise BadPicture("a folder, not a file") from error
    except PermissionError as error:
        raise BadPicture("permission denied") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises ValueError, SyntaxError, struct.error and others, not only OSError
        raise BadPicture(_phrase(error)) from error


def _unidentified(file: io.BytesIO | str) -> str:
    """Why Pillow does not know the format of `file`."""
    opened = file if isinstance(file, io.BytesIO) else Path(file).open("rb")  # noqa: SIM115 - closed by the next line
    with opened:
        opened.seek(0)
        head = opened.read(12)
    if not head:
        return "empty"
    is_heic = head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS
    return "HEIC, which needs pillow-heif: pip install pillow-heif" if is_heic else "not an image"


def is_upright_rgb(image: Image.Image) -> bool:
    """Whether `open_picture` would leave the pixels of `image` unchanged."""
    return image.mode == "RGB" and "transparency" not in image.info and _upright(image) is image


def _load(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise HugePicture(f"{width}x{height}, more than {max_pixels:,} pixels")
    if not width * height:
        raise BadPicture("no pixels")
    try:
        image.load()
        if image.mode.startswith("I;16"):
            eight_bits = Image.fromarray(_grey_of(image))
            return _upright(eight_bits, image.getexif()).convert("RGB")
        return _to_rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:
        raise BadPicture(_phrase(error)) from error


def _upright(image: Image.Image, exif: Image.Exif | None = None) -> Image.Image:
    try:
        exif = exif or image.getexif()
        if exif.get(ORIENTATION, 1) == 1:
            return image
        image.getexif()[ORIENTATION] = exif[ORIENTATION]
        return ImageOps.exif_transpose(image)
    except Exception:  # broken metadata in an intact image
        return image


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        coloured = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits as uint8.

    uint16 is scaled from 0..65535; for other types the largest value decides between 0..1, 0..255 and 0..65535.
    """
    if values.dtype.kind == "u" and values.itemsize == 2:  # in either byte order
        return (values >> 8).astype(np.uint8)
    is_float = np.issubdtype(values.dtype, np.floating)
    values = np.nan_to_num(values.astype(np.float64))
    top = values.max(initial=0.0)
    if is_float and top <= 1.0:
        values = values * 255.0
    elif top > 255.0:
        values = values / 257.0
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise BadPicture(f"an array of shape {array.shape}, not (height, width) or (height, width, 1, 3 or 4)")
    if array.dtype.kind == "u" and array.itemsize == 2:
        array = _eight_bits(array)
    if array.dtype != np.uint8:
        raise BadPicture(f"an array of {array.dtype}, not of uint8 values 0 to 255")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise HugePicture(f"{array.shape[1]}x{array.shape[0]}, more than {max_pixels:,} pixels")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if channels == 1 and array.ndim == 3 else array))


def _phrase(error: BaseException) -> str:
    """A decoder's error as one short phrase."""
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError) or "not enough data" in text.lower():
        return f"truncated ({text})" if text and text.lower() != "truncated" else "truncated"
    return f"cannot be decoded ({text or type(error).__name__})"


@cache
def _formats() -> list[str]:
    """The FORMATS that the installed Pillow can decode; HEIC needs pillow-heif."""
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
