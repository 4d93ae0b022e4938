"""Transforms of single images: reproducible in any process, in the right place, and blamed by name."""

from __future__ import annotations

import random
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from imgcls.data.augment import Augment
from imgcls.data.crops import RandomResizedCrop
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.per_image import as_picture
from imgcls.errors import UserError


def numbers(image: Image.Image) -> np.ndarray:
    """Random numbers of all global generators, as an image."""
    values = [random.randrange(256), np.random.randint(256), int(torch.randint(256, (1,)))]
    return np.full((24, 24, 3), values, dtype=np.uint8)


def module(root: Path, *transforms: Any, workers: int = 1, **options: Any) -> ImageFolder:
    options.setdefault("augment", Augment(per_image=transforms))
    return ImageFolder(root, image_size=24, resize=24, num_workers=workers, batch_size=8, **options)


def batches(data: ImageFolder, batch_size: int, epoch: int = 0) -> torch.Tensor:
    """The training images in order, as the model sees them in `epoch`."""
    return torch.cat([batch.images for batch in data.in_order("train", batch_size, epoch)])


def test_random_transforms_depend_on_seed_epoch_and_image_alone(pictures: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = batches(module(pictures, numbers), 7)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, batches(module(pictures, numbers, workers=2), 16))
    assert len(torch.unique(first.flatten(1), dim=0)) == len(first)
    assert not torch.equal(first, batches(module(pictures, numbers), 7, epoch=1))
    assert not torch.equal(first, batches(module(pictures, numbers, seed=1), 7)[: len(first)])


def test_an_epoch_that_is_left_early_does_not_disturb_the_next(pictures: Path) -> None:
    def rest(data: ImageFolder) -> list[torch.Tensor]:
        return [batch.images for batch in data.train_dataloader()]

    loader = module(pictures, numbers, workers=2).train_dataloader()
    next(iter(loader))
    loader.set_epoch(1)
    again = module(pictures, numbers).train_dataloader()
    again.set_epoch(1)
    for found, expected in zip(loader, again, strict=True):
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)
    assert not torch.equal(rest(module(pictures, numbers))[0], expected.images)


def test_what_changes_nothing_gives_the_pixels_of_the_store(pictures: Path) -> None:
    for augment in ({}, {"crop": RandomResizedCrop(), "flip": 0.5}):
        plain = module(pictures, augment=Augment(**augment))  # type: ignore[arg-type]
        same = module(pictures, augment=Augment(**augment, per_image=[v2.Identity(), v2.ToImage()]))  # type: ignore[arg-type]
        for found, expected in zip(same.train_dataloader(), plain.train_dataloader(), strict=True):
            assert torch.equal(found.images, expected.images)
            assert torch.equal(found.labels, expected.labels)
            assert torch.equal(found.index, expected.index)


def test_evaluation_and_the_cache_do_not_see_it(pictures: Path, own_cache: Path) -> None:
    data = module(pictures, numbers, store="disk")
    data.setup()
    plain = module(pictures, augment=Augment())
    for found, expected in zip(data.test_dataloader(), plain.test_dataloader(), strict=True):
        assert torch.equal(found.images, expected.images)
    assert len([path for path in (own_cache / "stores").iterdir() if path.is_dir()]) == 2  # validation and test


def test_unreadable_images_are_left_out(pictures: Path) -> None:
    broken = next((pictures / "train").rglob("*.png"))
    broken.write_bytes(b"no image")
    data = module(pictures, v2.Identity(), val_fraction=0.0)
    assert sum(len(batch.labels) for batch in data.in_order("train", 8, 0)) == 71


def test_transforms_of_albumentations_take_arrays_and_a_seed(pictures: Path) -> None:
    class Noise:
        """As those of albumentations: named arguments and answers, and a generator of its own."""

        def __init__(self) -> None:
            self.generator = np.random.default_rng()

        def set_random_seed(self, seed: int) -> None:
            self.generator = np.random.default_rng(seed)

        def __call__(self, *, image: np.ndarray) -> dict[str, np.ndarray]:
            return {"image": self.generator.integers(0, 256, image.shape, dtype=np.uint8)}

    Noise.__module__ = "albumentations.noise"
    first, second = (batches(module(pictures, v2.Identity(), Noise(), workers=count), 9) for count in (1, 2))
    assert torch.equal(first, second)
    assert len(torch.unique(first.flatten(1), dim=0)) == len(first)
    with pytest.raises(UserError, match=r"augment.extra: Noise .* data.augment.per_image"):
        Augment(extra=[Noise()])


def test_albumentations_itself(pictures: Path) -> None:
    albumentations = pytest.importorskip("albumentations")
    transform = albumentations.Compose([albumentations.RandomResizedCrop((24, 24)), albumentations.GaussNoise(p=1)])
    single = albumentations.ColorJitter(p=1)
    first, second = (batches(module(pictures, transform, single, workers=count), 9) for count in (1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, batches(module(pictures, transform, single), 9, epoch=1))


@pytest.mark.parametrize(
    "value",
    [
        Image.new("L", (5, 4), 100),
        np.full((4, 5, 3), 100, dtype=np.uint8),
        np.full((4, 5, 3), 100 / 255),
        torch.full((3, 4, 5), 100, dtype=torch.uint8),
        torch.full((3, 4, 5), 100 / 255),
    ],
)
def test_a_transform_may_return_any_kind_of_image(value: Any) -> None:
    picture = as_picture(value)
    assert picture.size == (5, 4)
    assert (np.asarray(picture) == 100).all()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (torch.zeros(3, 4, 5) - 1, "imgcls normalises"),
        (np.zeros((4, 5, 3), dtype=np.int64), "imgcls normalises"),
        (np.zeros((4, 5), dtype=np.uint8), r"returned \(4, 5\)"),
        (None, "returned NoneType"),
    ],
)
def test_what_is_no_image_is_refused(value: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        as_picture(value)


def fail(image: Image.Image) -> Image.Image:
    return image.no_such_method()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("transform", "complaints"),
    [
        (fail, ["AttributeError", "no_such_method", "test_per_image.py", "line"]),
        (v2.Compose([v2.ToTensor(), v2.Normalize([0.5] * 3, [0.5] * 3)]), ["imgcls normalises"]),
        (v2.RandomCrop(100), ["RandomCrop failed", "ValueError"]),
    ],
)
def test_a_transform_that_fails_is_named_with_the_image(
    transform: Any, complaints: Sequence[str], pictures: Path
) -> None:
    with pytest.raises(UserError, match=r"data.augment.per_image: \w+ failed for train/cat/\d+.png") as refused:
        batches(module(pictures, transform), 8)
    assert all(complaint in str(refused.value) for complaint in complaints)
    assert "DataLoader" not in str(refused.value)


@pytest.mark.parametrize("place", ["crop", "policy", "jitter", "erasing", "mixing"])
def test_a_compose_in_the_wrong_place_is_told_where_it_belongs(place: str, pictures: Path) -> None:
    compose: Any = v2.Compose([v2.RandomRotation(10)])
    with pytest.raises(UserError, match=rf"augment.{place}: Compose .* data.augment.per_image"):
        Augment(**{place: compose})
    with pytest.raises(UserError, match=r"data.augment: Compose .* data.augment.per_image"):
        ImageFolder(pictures, augment=compose)
    with pytest.raises(UserError, match="cannot be called"):
        Augment(per_image=[types.SimpleNamespace()])  # type: ignore[list-item]


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_rectangles_keep_their_shape(fit: str, pictures: Path) -> None:
    options: dict[str, Any] = {"image_size": [16, 32], "resize": 16, "batch_size": 8, "num_workers": 1, "fit": fit}
    plain = ImageFolder(pictures, augment=Augment(crop=RandomResizedCrop()), **options)
    same = ImageFolder(pictures, augment=Augment(crop=RandomResizedCrop(), per_image=[v2.Identity()]), **options)
    for found, expected in zip(same.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.equal(found.images, expected.images)
