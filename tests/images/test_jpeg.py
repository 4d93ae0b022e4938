"""JPEG files decoded without Pillow: the same pixels, and the same answers where a file is not as it should be."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from imgcls.images import jpeg
from imgcls.images.decoding import BadPicture, open_picture, open_scaled
from imgcls.images.jpeg import decode_jpeg

pytest.importorskip("simplejpeg")


@pytest.fixture
def with_pillow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and the library is not installed."""
    return lambda: monkeypatch.setattr(jpeg, "_library", lambda: None)


def photo(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    """A smooth picture with noise, as a JPEG file."""
    random = np.random.default_rng(width * 1000 + height)
    rows, columns = np.mgrid[:height, :width] / max(width, height)
    colours = np.stack([rows, columns, rows * columns], axis=2) * 220 + random.normal(0, 12, (height, width, 3))
    buffer = io.BytesIO()
    image = Image.fromarray(colours.clip(0, 255).astype(np.uint8)).convert(mode)
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (15, 40), (16, 16), (17, 33), (333, 250), (800, 601)])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2, "progressive": True}, {"quality": 30}])
def test_the_pixels_are_those_of_pillow(
    size: tuple[int, int], options: dict[str, object], with_pillow: Callable[[], None]
) -> None:
    content = photo(*size, **options)
    whole, (scaled, aspect) = decode_jpeg(content, size), open_scaled(content, 64)
    if min(size) >= jpeg.SMALLEST:
        assert whole is not None
        assert np.array_equal(whole, open_picture(content))
    with_pillow()
    expected, expected_aspect = open_scaled(content, 64)
    assert np.array_equal(scaled, expected)
    assert aspect == expected_aspect
    if size == (800, 601):
        assert scaled.shape == (151, 200, 3), "a quarter, at least twice as large as 64 px"


def check_that_pillow_decodes_the_same(content: bytes, with_pillow: Callable[[], None]) -> None:
    found, aspect = open_scaled(content, 64)
    with_pillow()
    expected, expected_aspect = open_scaled(content, 64)
    assert np.array_equal(found, expected)
    assert aspect == expected_aspect


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(orientation: int, with_pillow: Callable[[], None]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = photo(40, 24, exif=exif)
    check_that_pillow_decodes_the_same(content, with_pillow)


def test_the_first_of_several_images_is_not_scaled(with_pillow: Callable[[], None]) -> None:
    buffer = io.BytesIO()
    first, second = (Image.open(io.BytesIO(photo(600, 500))) for _ in range(2))
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    found, _ = open_scaled(buffer.getvalue(), 64)
    with_pillow()
    assert np.array_equal(found, open_scaled(buffer.getvalue(), 64)[0])


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_are_left_to_pillow(mode: str, with_pillow: Callable[[], None]) -> None:
    content = photo(40, 24, mode)
    check_that_pillow_decodes_the_same(content, with_pillow)


def test_a_damaged_file_is_refused_for_pillows_reason(with_pillow: Callable[[], None]) -> None:
    whole = photo(120, 90)
    reasons: dict[str, list[str]] = {"library": [], "Pillow": []}
    for found in reasons.values():
        for length in (0, 10, 400, len(whole) // 2, len(whole) - 40):
            try:
                found.append(str(open_scaled(whole[:length], 64)[0].sum()))
            except BadPicture as error:
                found.append(error.reason)
        with_pillow()
    assert reasons["library"] == reasons["Pillow"]
