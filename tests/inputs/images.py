"""Images that are odd, damaged or hostile, as the bytes of their files."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def noise(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_tiff(data: bytes, bits: int, photometric: int = 1, order: str = "<") -> bytes:
    """An uncompressed grey TIFF of 4x4 px."""
    tags = [
        (256, 4),
        (257, 4),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, 4),
        (279, len(data)),
    ]
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data)) + data
    content += struct.pack(f"{order}H", len(tags))
    return content + b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags) + bytes(4)


def bomb(side: int) -> bytes:
    """A PNG of a hundred bytes whose header declares side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def icon(content: bytes) -> bytes:
    """An ICO file whose directory declares 256x256 px for the PNG in it, whatever its size."""
    directory = struct.pack("<4B2H2I", 0, 0, 0, 0, 1, 32, len(content), 22)
    return struct.pack("<3H", 0, 1, 1) + directory + content
