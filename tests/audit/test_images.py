"""Planted copies, poor images and hidden groups are found, and ordinary ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from imgcls.audit.hidden_groups import find_hidden_groups
from imgcls.audit.quality import find_poor_images, measure_sharpness
from imgcls.audit.unlike import find_unlike
from imgcls.data.checks import inspect
from imgcls.data.duplicates import find_copies
from imgcls.data.stores.store import ArrayStore
from tests.audit.features import clouds


def photograph(seed: int, width: int = 200, height: int = 160) -> Image.Image:
    """Some coloured patches with edges and noise."""
    random = np.random.default_rng(seed)
    patches = Image.fromarray(random.integers(40, 255, (6, 8, 3), dtype=np.uint8))
    image = np.asarray(patches.resize((width, height), Image.Resampling.NEAREST)).astype(int)
    return Image.fromarray((image + random.integers(-20, 20, image.shape)).clip(0, 255).astype(np.uint8))


def test_poor_images(tmp_path: Path) -> None:
    images = {f"usual{number}": photograph(number) for number in range(20)}
    images["blurred"] = photograph(30).filter(ImageFilter.GaussianBlur(8))
    images["very dark"] = photograph(31).point(lambda value: value // 20)
    images["no contrast"] = Image.new("RGB", (200, 160), (128, 128, 128))
    images["tiny"] = photograph(32, 40, 32)
    images["odd aspect ratio"] = photograph(33, 900, 160)
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in images]
    pixels = np.stack([np.asarray(image.resize((96, 96))) for image in images.values()])
    found = find_poor_images(inspect(files), measure_sharpness([ArrayStore(pixels, np.ones(len(pixels)))]), 96)
    assert found[:20] == [""] * 20
    assert dict(zip(images, found, strict=True)) == {name: "" if "usual" in name else name for name in images}


def test_what_most_images_are_like_is_not_poor() -> None:
    dark = np.stack([np.asarray(photograph(number, 32, 32)) // 20 for number in range(10)])
    assert find_poor_images(inspect(dark), None, input_side=224) == [""] * 10


def test_copies_within_a_set(tmp_path: Path) -> None:
    for number in range(8):
        photograph(number).save(tmp_path / f"{number}.png")
    photograph(3).save(tmp_path / "8.png")
    photograph(5).resize((120, 96)).save(tmp_path / "9.jpg")
    files = [tmp_path / f"{number}.png" for number in range(9)] + [tmp_path / "9.jpg"]
    assert find_copies(inspect(files)) == [("identical", 8, 3), ("near", 9, 5)]
    (tmp_path / "8.png").write_bytes(b"")
    assert find_copies(inspect(files)) == [("near", 9, 5)]
    assert find_copies(inspect(files[:0])) == []


def test_two_classes_under_one_name_are_found() -> None:
    features, labels = clouds(400, 4)
    hidden = np.where(labels == 3, 2, labels)
    [group] = find_hidden_groups(features.numpy(), hidden, 3)
    assert group.label == 2
    assert group.share == pytest.approx(0.5, abs=0.05)
    first, second = (set(labels[list(rows)].tolist()) for rows in (group.first, group.second))
    assert {2, 3} == first | second
    assert len(first) == len(second) == 1
    assert find_hidden_groups(features.numpy(), labels, 4) == []
    assert find_hidden_groups(features.numpy()[:20], hidden[:20], 3) == [], "too few to say"


def test_images_unlike_the_training_images() -> None:
    training, _ = clouds(500, 4, spread=0.4)
    alike, _ = clouds(100, 4, spread=0.4, seed=1)
    foreign = torch.randn(20, training.shape[1], generator=torch.Generator().manual_seed(3)) * 4 + 3
    assert find_unlike(foreign, training).mean() > 0.9
    assert find_unlike(alike, training).mean() < 0.05
    assert find_unlike(alike, training[:3]).sum() == 0
