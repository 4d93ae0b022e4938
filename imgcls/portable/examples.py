"""A few small validation images beside a portable model, which the server's page offers to try."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture, open_picture
from imgcls.images.jpeg import encode_jpeg
from imgcls.images.signatures import has_picture_signature

FOLDER = "examples"
COUNT = 8
SIDE_PX = 256
MAX_PIXELS = 40_000_000


def write_examples(images: Sequence[Image.Image], folder: Path) -> None:
    """Write `images` into the folder `examples` of the portable model in `folder`: small, and without metadata."""
    for number, image in enumerate(images):
        file = folder / FOLDER / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(encode(image, SIDE_PX))


def encode(image: Image.Image, side: int) -> bytes:
    """A JPEG of up to `side` pixels each way that a model answers nearly as it answers `image`."""
    return encode_jpeg(image, side, 92, subsampling=0)


def find_examples(folder: Path, count: int = COUNT) -> list[Path]:
    """Up to `count` images in `folder`, evenly spread over it and the folders in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and has_picture_signature(file))
    count = min(count, len(files))
    return [files[(2 * place + 1) * len(files) // (2 * count)] for place in range(count)]


def encode_file(file: Path, side: int) -> bytes:
    """`encode` of an image file. Raises UserError if it cannot be read."""
    try:
        return encode(open_picture(file, MAX_PIXELS), side)
    except BadPicture as error:
        raise UserError(f"examples: {file} cannot be used: {error.reason}.") from error
