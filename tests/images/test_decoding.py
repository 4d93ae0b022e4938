"""Every kind of image becomes correct RGB, or a BadPicture with a reason."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, features

from imgcls.images.decoding import BadPicture, HugePicture, as_list, decode, open_picture
from imgcls.images.rgb import ORIENTATION
from tests.inputs.images import bomb, encoded, grey_tiff, icon, noise

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "JPEG", "WEBP", "AVIF", "JPEG2000", "ICO", "MPO"])
def test_formats(kind: str, tmp_path: Path) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / "picture.jpg"  # mislabelled: the content decides
    path.write_bytes(encoded(Image.new("RGB", (16, 16), RED), kind))
    picture, detected = decode(path)
    assert (picture.mode, picture.size) == ("RGB", (16, 16))
    assert np.abs(np.asarray(picture, dtype=int) - RED).max() <= 4
    assert detected == ("JPEG" if kind == "MPO" else kind)


def test_lossless_pixels_are_unchanged() -> None:
    image = noise()
    for source in (encoded(image, "PNG"), image, np.asarray(image)):
        assert np.array_equal(np.asarray(open_picture(source)), np.asarray(image))


def test_one_image_and_many_are_told_apart() -> None:
    image, batch = noise(), np.zeros((3, 8, 8, 3), np.uint8)
    for single in (
        "a.png",
        Path("a.png"),
        b"x",
        bytearray(b"x"),
        image,
        batch[0],
        batch[0, ..., 0],
        torch.zeros(3, 8, 8),
        5,
    ):
        listed = as_list(single)
        assert len(listed) == 1
        assert listed[0] is single
    assert [len(as_list(many)) for many in (batch, [image] * 3, iter([image] * 3), torch.zeros(3, 3, 8, 8))] == [3] * 4


def test_a_tensor_is_answered_with_what_is_taken() -> None:
    with pytest.raises(BadPicture, match=r"^of type Tensor, not a path, .* numpy array \(height, width, 3\)$"):
        open_picture(torch.zeros(3, 8, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste(RED, (0, 0, 8, 8))  # red at the upper left
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = open_picture(encoded(stored, "PNG", exif=exif))
    assert np.array_equal(np.asarray(picture), np.asarray(upright))
    assert np.array_equal(np.asarray(open_picture(picture)), np.asarray(upright)), "it is not rotated twice"


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP"])
def test_exif_orientation_in_other_formats(kind: str) -> None:
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture = open_picture(encoded(upright.transpose(Image.Transpose.ROTATE_90), kind, exif=exif))
    assert picture.size == (32, 16)
    assert np.asarray(picture)[8, 4, 0] > 200
    assert np.asarray(picture)[8, 28, 0] < 50


def test_broken_exif_is_ignored() -> None:
    picture = open_picture(encoded(noise(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"))
    assert picture.size == (24, 16)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "YCbCr", "CMYK", "RGBA", "LA", "HSV", "LAB", "RGBX", "RGBa", "La", "PA"]
)
def test_modes(mode: str) -> None:
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(
            Image.new("RGB", (4, 4), WHITE), ImageCms.buildTransform(*profiles, "RGB", "LAB")
        )
    elif mode in ("RGBa", "La", "PA"):
        image = Image.new("RGBA" if mode == "RGBa" else "LA", (4, 4), "white").convert(mode)
    else:
        image = Image.new("RGB", (4, 4), WHITE).convert(mode)
    picture = open_picture(image)
    assert picture.mode == "RGB"
    assert np.asarray(picture).min() >= 254


def test_cmyk_jpeg() -> None:
    content = encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(open_picture(content), dtype=int) - RED).max() <= 6


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (2, 1), (*RED, 0))
    clear.putpixel((1, 0), (*RED, 255))
    assert np.asarray(open_picture(encoded(clear, "PNG"))).tolist() == [[list(WHITE), list(RED)]]
    half = Image.new("LA", (1, 1), (0, 128))
    assert np.asarray(open_picture(encoded(half, "PNG"))).tolist() == [[[127, 127, 127]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    content = encoded(palette, "PNG", transparency=0)
    assert np.asarray(open_picture(content)).tolist() == [[list(WHITE), [0, 0, 255]]]
    key = encoded(Image.new("RGB", (1, 1), RED), "PNG", transparency=RED)
    assert np.asarray(open_picture(key)).tolist() == [[list(WHITE)]]


def test_sixteen_bits() -> None:
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        pixels = np.asarray(open_picture(encoded(Image.fromarray(ramp), kind)))
        assert np.array_equal(pixels[..., 0], expected)
        assert np.array_equal(pixels[..., 0], pixels[..., 2])
    for array in (ramp, ramp.astype(">u2"), ramp[:, :8].astype("<u2")):
        assert np.array_equal(np.asarray(open_picture(array))[..., 1], expected[:, : array.shape[1]])
    assert np.array_equal(np.asarray(open_picture(Image.fromarray(ramp.astype(np.int32))))[..., 1], expected)
    fractions = Image.fromarray((ramp / 65535).astype(np.float32))
    assert np.array_equal(np.asarray(open_picture(encoded(fractions, "TIFF")))[..., 1], expected)
    assert np.asarray(open_picture(Image.fromarray(np.ones((1, 1), dtype=np.int32)))).max() == 1


@pytest.mark.parametrize("order", "<>")
def test_dark_sixteen_bits_stay_dark(order: str) -> None:
    """A TIFF in either byte order whose values would all fit in eight bits."""
    content = grey_tiff(np.full((4, 4), 200, dtype=f"{order}u2").tobytes(), 16, order=order)
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == 200
    assert not np.asarray(open_picture(content)).any()


def test_twelve_bits_have_their_own_range() -> None:
    values = np.linspace(0, 4095, 16).astype(int)
    packed = b"".join(
        bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
        for first, second in zip(values[::2].tolist(), values[1::2].tolist(), strict=True)
    )
    pixels = np.asarray(open_picture(grey_tiff(packed, 12)))[..., 0]
    assert pixels.ravel().tolist() == (values >> 4).tolist()


@pytest.mark.parametrize("bits", [8, 16])
def test_white_may_be_zero(bits: int) -> None:
    values = np.arange(16, dtype=np.uint16) * 17
    data = (values * 257).astype("<u2").tobytes() if bits == 16 else values.astype(np.uint8).tobytes()
    pixels = np.asarray(open_picture(grey_tiff(data, bits, photometric=0)))[..., 0]
    assert pixels.ravel().tolist() == (255 - values).tolist()


def test_the_transparent_grey_of_sixteen_bits_is_white() -> None:
    grey = np.array([[768, 30_000]], dtype=np.uint16)
    content = encoded(Image.fromarray(grey), "PNG", transparency=768)
    assert np.asarray(open_picture(content))[..., 0].tolist() == [[255, 117]]


def test_sixteen_bits_are_upright() -> None:
    grey = np.array([[0, 65_535]], dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.asarray(open_picture(encoded(Image.fromarray(grey), "PNG", exif=exif)))[..., 0].tolist() == [[0], [255]]


def test_a_large_comment_is_no_fault_of_the_image() -> None:
    comment = PngImagePlugin.PngInfo()
    comment.add_itxt("comment", "x" * 3_000_000, zip=True)
    assert open_picture(encoded(noise(), "PNG", pnginfo=comment)).size == (24, 16)


def test_an_image_of_a_phone_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.images.decoding._formats", lambda: ["PNG"])
    with pytest.raises(BadPicture, match="pip install pillow-heif"):
        open_picture(b"\0\0\0\x18ftypheic" + bytes(100))


def test_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, "blue", "green")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(np.asarray(open_picture(content), dtype=int) - RED).max() <= 4


def test_arrays() -> None:
    grey = np.full((3, 5), 7, dtype=np.uint8)
    for array in (grey, grey[..., None], np.repeat(grey[..., None], 3, axis=2)):
        assert np.asarray(open_picture(array)).shape == (3, 5, 3)
    for invalid in (np.zeros((3, 5)), np.zeros((3, 5, 2), dtype=np.uint8), np.zeros((0, 5), dtype=np.uint8)):
        with pytest.raises(BadPicture, match="an array of"):
            open_picture(invalid)


def test_bad_files(tmp_path: Path) -> None:
    photo = encoded(noise(64, 64), "JPEG", quality=95)
    for name, content, reason in [
        ("empty.jpg", b"", "empty"),
        ("cut.jpg", photo[:-150], "truncated"),
        ("cut.png", encoded(noise(), "PNG")[:-200], "truncated"),
        ("text.jpg", b"<html>not found</html>", "not an image"),
        ("head.jpg", photo[:2], "not an image"),
    ]:
        (tmp_path / name).write_bytes(content)
        for source in (tmp_path / name, str(tmp_path / name), content):
            with pytest.raises(BadPicture) as error:
                open_picture(source)
            assert error.value.reason.startswith(reason), name
    for path, reason in [(tmp_path / "none.jpg", "no such file"), (tmp_path, "a folder, not a file")]:
        with pytest.raises(BadPicture, match=reason):
            open_picture(path)


def test_decompression_bomb() -> None:
    for side in (10_000, 60_000):  # above our limit, and above the one at which Pillow itself refuses
        with pytest.raises(BadPicture, match="more than 89,478,485 pixels"):
            open_picture(bomb(side))


def test_an_icon_is_as_large_as_the_image_in_it() -> None:
    content = icon(encoded(noise(300, 200), "PNG"))
    assert open_picture(content).size == (300, 200)
    with pytest.raises(HugePicture, match="300x200, more than"):
        open_picture(content, 50_000)
    small = encoded(noise(64, 64), "ICO", sizes=[(64, 64)], bitmap_format="bmp")
    assert open_picture(small, 64 * 64).size == (64, 64)


def test_an_icon_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it is decoded when it is opened"))
    with pytest.raises(HugePicture, match="20000x20000, more than 89,478,485 pixels"):
        open_picture(icon(bomb(20_000)))


def test_postscript_starts_no_program() -> None:
    with pytest.raises(BadPicture, match="not an image"):
        open_picture(encoded(noise(), "EPS"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damaged_files_raise_only_bad_picture(kind: str) -> None:
    content, rng = encoded(noise(), kind), random.Random(0)
    for _ in range(150):
        damaged = bytearray(content[: rng.randrange(len(content)) + 1])
        for _ in range(rng.randrange(8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with contextlib.suppress(BadPicture):
            assert open_picture(bytes(damaged)).mode == "RGB"


def test_bad_pictures_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(BadPicture("empty"))).reason == "empty"
