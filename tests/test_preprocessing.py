from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.errors import UserError
from imgcls.preprocessing import INTERPOLATIONS, Preprocessing


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
