"""Decoding an image of any format as RGB: the one way that training, evaluation, predict and serve share."""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from imgcls.images.jpeg import decode_jpeg, is_installed
from imgcls.images.paths import read_member
from imgcls.images.rgb import TRANSPOSES, is_upright_rgb, orientation_of, to_rgb
from imgcls.images.signatures import JPEG_SUFFIXES, is_heic

Source = Path | str | bytes | Image.Image | np.ndarray
MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded: a quarter of a gigabyte as RGB (Pillow's own limit)."""

# Decoders that run in this process and recognise their files by the first bytes. Not EPS and PDF, whose decoders
# start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO", "AVIF", "HEIF", "JPEG2000", "PPM", "DIB", "ICO", "QOI")
SCALED_SIDES = 2  # Pillow's own thumbnails leave as much
ICON_SIGNATURE = b"\0\0\x01\0"
NPY_MAGIC = b"\x93NUMPY"
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24  # bytes; sound files have comments and colour profiles of several MB

# The checks report these files in one list; Pillow's warnings would land in the middle of a progress bar.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings(
    "ignore",
    "(Corrupt EXIF data|Truncated File Read|Metadata Warning|Image was not the expected size)",
    UserWarning,
    r"PIL\.",
)


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


def as_list(pictures: Any) -> list[Any]:
    """`pictures` one by one: a single one, any iterable of them, or an array (N, H, W, C)."""
    dimensions = getattr(pictures, "ndim", None)
    if dimensions is not None:
        return list(pictures) if dimensions == 4 else [pictures]
    is_single = isinstance(pictures, str | Path | bytes | bytearray | memoryview | Image.Image | Mapping)
    return [pictures] if is_single or not isinstance(pictures, Iterable) else list(pictures)


def decode(source: Source, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """`open_picture(source)` and the format of its content, such as 'JPEG' or 'PNG'; '' for an array."""
    with _opened(source, max_pixels) as (image, kind, is_ours):
        return _load(image, max_pixels, is_ours), kind


def open_unconverted(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `open_picture`, in the mode of the file. Raises BadPicture."""
    with _opened(source, max_pixels) as (image, _, is_ours):
        return _load(image, max_pixels, is_ours, convert=lambda image: image)


def open_scaled(source: Source, side: int) -> tuple[np.ndarray, float]:
    """The pixels of an image, uint8 (H, W, 3), to be shrunk to a square of `side` px, and its width / height.

    A JPEG more than four times as large is decoded at a half, a quarter or an eighth of its size, in a third of the
    time; at least `SCALED_SIDES` times `side` are left, so that the result hardly differs. Raises BadPicture.
    """
    if is_installed():
        source = _content(source) or source
    with _opened(source, MAX_PIXELS) as (image, kind, is_ours):
        width, height = image.size
        if kind == "JPEG" and is_ours and width * height <= MAX_PIXELS:
            image.draft(None, (SCALED_SIDES * side, SCALED_SIDES * side))
            if isinstance(source, bytes) and is_upright_rgb(image):
                pixels = decode_jpeg(source, image.size)
                if pixels is not None:
                    return pixels, width / height
        decoded = image.size
        rgb = _load(image, MAX_PIXELS, is_ours)
        return np.asarray(rgb), width / height if rgb.size == decoded else height / width


def _content(source: Source) -> bytes | None:
    """What may be a JPEG; None for others, and for what cannot be read."""
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str | Path):
        return None
    try:
        content = read_member(str(source))
        return Path(source).read_bytes() if content is None and str(source).lower().endswith(JPEG_SUFFIXES) else content
    except OSError:
        return None


def is_scaled(kind: str, size: tuple[int, int], side: int) -> bool:
    """Whether `open_scaled` decodes an image of a format and a size at a part of that."""
    return kind == "JPEG" and min(size) >= 2 * SCALED_SIDES * side


def read_size(file: IO[bytes]) -> tuple[int, int]:
    """Width and height of an image, px, upright, from its header. Raises BadPicture."""
    try:
        if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
            file.seek(0)
            *first, height, width = read_npy(io.BytesIO(file.read())).shape
            return (width, height) if not first or first[0] < width else (height, first[0])  # (C, H, W) or (H, W, C)
        file.seek(0)
        with Image.open(file, formats=_formats()) as image:
            width, height = image.size
            return (height, width) if orientation_of(image) >= 5 else (width, height)
    except BadPicture:
        raise
    except Exception as error:  # Pillow's decoders raise many
        raise BadPicture("not an image") from error


def read_npy(stream: io.BytesIO) -> np.ndarray:
    """An array of numbers in numpy's format; its header is compared with the size before memory is allocated.

    Raises BadPicture.
    """
    try:
        version = npy_format.read_magic(stream)
        read_header = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}[version]
        shape, fortran, dtype = read_header(stream, max_header_size=10_000)
        start, content = stream.tell(), stream.getbuffer()
        if dtype.hasobject or dtype.kind not in "iufb":
            raise BadPicture(f"an NPY array of {dtype}, not of numbers")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content) - start:
            raise BadPicture("an NPY array that is shorter or longer than its header says")
        return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    except BadPicture:
        raise
    except Exception as error:  # numpy parses the header with Python's tokenizer and raises its errors
        raise BadPicture("not an NPY array") from error


@contextmanager
def _opened(source: Source, max_pixels: int) -> Iterator[tuple[Image.Image, str, bool]]:
    """An image that is decoded inside, the format of its content, and whether it is ours alone, to change and to close.

    Raises BadPicture for whatever is wrong with it, inside too.
    """
    if isinstance(source, np.ndarray):
        yield _from_array(source, max_pixels), "", True
        return
    if isinstance(source, Image.Image):
        yield source, source.format or "", False
        return
    file = _file(source)
    try:
        if _starts_with(file, NPY_MAGIC):
            stream = file if isinstance(file, io.BytesIO) else io.BytesIO(Path(file).read_bytes())
            yield _from_array(read_npy(stream), max_pixels), "NPY", True
            return
        _check_icon(file, max_pixels)
        with Image.open(file, formats=_formats()) as image:
            yield image, image.format or "", True
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


def _file(source: Any) -> io.BytesIO | str:
    """What Pillow opens: a path, or the bytes of a file."""
    if isinstance(source, str | Path):
        try:
            content = read_member(str(source))
        except OSError as error:
            raise BadPicture(error.strerror or "no such file") from error
        if content is None:
            return str(source)
        source = content
    if not isinstance(source, bytes | bytearray | memoryview):
        expected = "a path, bytes, a Pillow image or a uint8 numpy array (height, width, 3)"
        raise BadPicture(f"of type {type(source).__name__}, not {expected}")
    if not len(source):
        raise BadPicture("empty")
    return io.BytesIO(source)


def _starts_with(file: io.BytesIO | str, magic: bytes) -> bool:
    if isinstance(file, io.BytesIO):
        return bytes(file.getbuffer()[: len(magic)]) == magic
    if not file.lower().endswith(".npy"):
        return False  # images are not opened twice
    with Path(file).open("rb") as opened:
        return opened.read(len(magic)) == magic


def _unidentified(file: io.BytesIO | str) -> str:
    """Why Pillow does not know the format of `file`."""
    opened = file if isinstance(file, io.BytesIO) else Path(file).open("rb")  # noqa: SIM115 - closed by the next line
    with opened:
        opened.seek(0)
        head = opened.read(12)
    if not head:
        return "empty"
    return "HEIC, which needs pillow-heif: pip install pillow-heif" if is_heic(head) else "not an image"


def _load(
    image: Image.Image,
    max_pixels: int,
    is_ours: bool = False,
    convert: Callable[[Image.Image], Image.Image] | None = None,
) -> Image.Image:
    """`image` as upright RGB; beside the result it takes up to one image more, which is freed if it `is_ours`."""
    width, height = image.size
    if image.format == "JPEG2000" and max_pixels < MAX_PIXELS:
        max_pixels //= 2  # where memory counts: its decoder takes twice as much
    if width * height > max_pixels:
        raise HugePicture(f"{width}x{height}, more than {max_pixels:,} pixels")
    if not width * height:
        raise BadPicture("no pixels")
    try:
        image.load()
        orientation = orientation_of(image)
        rgb = (convert or to_rgb)(image)
        if rgb is image:
            rgb = image._new(image.im) if is_ours else image.copy()
        rgb.info.clear()
        if is_ours:
            image.close()
        return rgb if orientation == 1 else rgb.transpose(TRANSPOSES[orientation])
    except MemoryError:
        raise
    except Exception as error:
        raise BadPicture(_phrase(error)) from error


def _check_icon(file: io.BytesIO | str, max_pixels: int) -> None:
    """Refuse an ICO file with an image of more than `max_pixels`: Pillow decodes it when it is opened.

    The sizes are those in the images' own headers; the directory of the file can state less.
    """
    opened = io.BytesIO(file.getbuffer()) if isinstance(file, io.BytesIO) else Path(file).open("rb")  # noqa: SIM115
    with opened:
        if opened.read(4) != ICON_SIGNATURE:
            return
        (count,) = struct.unpack("<H", opened.read(2))
        offsets = [struct.unpack("<12xI", opened.read(16))[0] for _ in range(count)]
        for offset in offsets:
            opened.seek(offset)
            head = opened.read(24)
            is_png = head.startswith(b"\x89PNG")
            width, height = struct.unpack(">2I", head[16:24]) if is_png else struct.unpack("<2i", head[4:12])
            height = height if is_png else abs(height) // 2  # the mask follows
            if width * height > max_pixels:
                raise HugePicture(f"{width}x{height}, more than {max_pixels:,} pixels")


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise BadPicture(f"an array of shape {array.shape}, not (height, width) or (height, width, 1, 3 or 4)")
    if array.dtype.kind == "u" and array.itemsize == 2:
        array = (array >> 8).astype(np.uint8)  # in either byte order
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
