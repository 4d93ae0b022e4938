from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.errors import UserError
from imgcls.images.preprocessing import INTERPOLATIONS, Preprocessing


def picture(width: int, height: int) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (41, 41), (500, 41), (33, 32), (20, 9)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_match_torchvisions_resize_and_centre_crop(size: tuple[int, int], interpolation: str) -> None:
    from torchvision.transforms import v2

    reference = v2.Compose([v2.Resize(36, v2.InterpolationMode(interpolation)), v2.CenterCrop(32)])
    ours = Preprocessing(32, 36, interpolation).pixels(picture(*size))
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - np.asarray(reference(picture(*size)))).max() <= 2


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    assert np.array_equal(Preprocessing(32, 36).pixels(picture(32, 32)), np.asarray(picture(32, 32)))


def test_a_shorter_side_of_the_right_size_is_cropped_and_not_resampled() -> None:
    assert np.array_equal(Preprocessing(24, 32).pixels(picture(51, 32)), np.asarray(picture(51, 32))[4:28, 14:38])


def test_other_modes_become_rgb() -> None:
    assert Preprocessing(8, 8).pixels(picture(20, 10).convert("L")).shape == (8, 8, 3)


def test_pixels_are_writeable() -> None:
    assert Preprocessing(8, 8).pixels(picture(8, 8)).flags.writeable


def test_normalise() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    preprocessing = Preprocessing(4, 4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    normalised = preprocessing.normalise(pixels)
    assert normalised.dtype == np.float32
    assert normalised.flags.c_contiguous
    np.testing.assert_allclose(normalised, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_survives_a_round_trip_through_json() -> None:
    preprocessing = Preprocessing(32, 36, "bilinear", mean=(0.1, 0.2, 0.3))
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.as_dict()))) == preprocessing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 32, "resize": 31}, "centre crop would not fit"),
        ({"image_size": 0, "resize": 31}, "at least 1"),
        ({"image_size": 32, "resize": 32, "interpolation": "bicubik"}, "Did you mean bicubic"),
        ({"image_size": 32, "resize": 32, "std": (1, 0, 1)}, "three numbers"),
        ({"image_size": 32, "resize": 32, "mean": (0.5,)}, "three numbers"),
    ],
)
def test_invalid_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing(**options)


def test_every_interpolation_works() -> None:
    for name in INTERPOLATIONS:
        assert Preprocessing(8, 9, name).pixels(picture(20, 10)).shape == (8, 8, 3)


def edges(width: int, height: int) -> Image.Image:
    """White, with a black stripe at the left and a red one at the bottom."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[:, : width // 8] = 0
    pixels[-height // 8 :] = (255, 0, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(90, 30), (30, 90), (31, 30), (500, 3), (24, 40)])
@pytest.mark.parametrize("shape", [32, (24, 40), (40, 24)])
def test_pad_keeps_the_whole_image_and_its_proportions(size: tuple[int, int], shape: Any) -> None:
    preprocessing = Preprocessing(shape, 1, "nearest", fit="pad", pad_colour=(0, 0, 255))
    pixels = preprocessing.pixels(edges(*size))
    height, width = preprocessing.shape
    assert pixels.shape == (height, width, 3)
    inside = (pixels != (0, 0, 255)).any(axis=2)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    inner_height, inner_width = len(rows), len(columns)
    assert inside.sum() == inner_height * inner_width, "one rectangle"
    assert inner_height == height or inner_width == width
    assert abs(inner_width / inner_height - size[0] / size[1]) <= (size[0] / size[1] + 1) / min(
        inner_height, inner_width
    )
    assert abs((rows[0] + rows[-1] + 1) - height) <= 1
    assert abs((columns[0] + columns[-1] + 1) - width) <= 1
    assert (pixels[rows[0], columns[0]] == 0).all() or size[1] == 3, "the left edge is in it"


def test_squash_is_pillows_resize() -> None:
    pixels = Preprocessing((20, 50), 1, "bilinear", fit="squash").pixels(picture(33, 90))
    assert np.array_equal(pixels, np.asarray(picture(33, 90).resize((50, 20), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("size", [(90, 30), (30, 90), (500, 41), (48, 24)])
def test_a_crop_to_a_rectangle_is_the_centre_with_its_margin(size: tuple[int, int]) -> None:
    preprocessing = Preprocessing((24, 48), 30, "box")
    gradient = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    gradient[..., 0] = np.linspace(0, 255, size[0])[None]
    gradient[..., 1] = np.linspace(0, 255, size[1])[:, None]
    pixels = preprocessing.pixels(Image.fromarray(gradient)).astype(float)
    assert pixels.shape == (24, 48, 3)
    if size == (48, 24):
        assert np.array_equal(pixels, gradient)
        return
    scale = max(24 / size[1], 48 / size[0]) * 30 / 24
    shown = [min(1.0, 48 / scale / size[0]), min(1.0, 24 / scale / size[1])]
    for channel, axis, share in ((0, 1, shown[0]), (1, 0, shown[1])):
        profile = pixels[..., channel].mean(axis=1 - axis)
        assert abs(profile.mean() - 127.5) < 4, "centred"
        assert abs((profile[-1] - profile[0]) / 255 - share * (1 - 1 / len(profile))) < 0.06


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "padd"}, "Did you mean pad"),
        ({"fit": "pad", "pad_colour": (0, 0, 256)}, "0..255"),
        ({"image_size": (24, 0)}, "at least 1"),
        ({"image_size": (24, 40), "resize": 23}, "Set resize to 24"),
    ],
)
def test_invalid_fits_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing(**{"image_size": 8, "resize": 40, **options})


def test_a_rectangle_survives_a_round_trip_and_an_old_description_means_crop() -> None:
    preprocessing = Preprocessing((32, 48), 36, fit="pad", pad_colour=(1, 2, 3))
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.as_dict()))) == preprocessing
    assert Preprocessing([32, 32], 36).image_size == 32  # type: ignore[arg-type]
    old = {name: value for name, value in Preprocessing(32, 36).as_dict().items() if name not in ("fit", "pad_colour")}
    assert Preprocessing.from_dict(old) == Preprocessing(32, 36)


@pytest.mark.parametrize("values", [{"mean": (float("nan"), 0, 0)}, {"std": (0, 1, 1)}, {"std": (1, float("inf"), 1)}])
def test_a_normalisation_without_finite_results_is_refused(values: dict[str, tuple[float, float, float]]) -> None:
    with pytest.raises(UserError, match="must be three numbers"):
        Preprocessing(8, 8, **values)  # type: ignore[arg-type]
