"""Which files are images: the suffixes of their names, and their first bytes."""

from __future__ import annotations

from pathlib import Path

PICTURE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".qoi"}
    | {".npy"}
)
"""Lower-case suffixes of the files that count as images when a folder is searched."""

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis")
AVIF_BRANDS = (b"avif", b"avis")
SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"),
    *(b"II*\0", b"MM\0*", b"qoif", b"\0\0\0\x0cjP  "),
)


def has_picture_signature(file: Path) -> bool:
    """Whether `file` begins like an image of a usual format, whatever its name."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            head = opened.read(12)
    except OSError:
        return False
    is_webp, is_bmp = head[:4] == b"RIFF" and head[8:] == b"WEBP", head[:2] == b"BM" and head[6:10] == bytes(4)
    return is_webp or is_bmp or head.startswith(SIGNATURES) or _has_brand(head, (*HEIC_BRANDS, *AVIF_BRANDS))


def is_heic(head: bytes) -> bool:
    """Whether a file with these first 12 bytes needs pillow-heif."""
    return _has_brand(head, HEIC_BRANDS)


def _has_brand(head: bytes, brands: tuple[bytes, ...]) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in brands
