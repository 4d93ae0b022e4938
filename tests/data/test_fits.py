"""How images of other aspect ratios fit into the model's input, in training and in evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import imgcls
from imgcls.config.composition import compose
from imgcls.data.augment import Augment
from imgcls.data.crops import RandomResizedCrop
from imgcls.data.imagefolder import ImageFolder
from imgcls.errors import UserError
from tests.trainings import SMALL

WIDE, HIGH = (96, 32), (32, 96)


def write(root: Path, count: int) -> Path:
    """Images of 3:1 and 1:3, at an end of which something is either green or red."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(60, 120, (32, 96, 3), dtype=np.uint8)
            left = 2 if number % 2 else 96 - 22
            pixels[4:28, left : left + 20, channel] = 255
            image = Image.fromarray(pixels)
            upright = image if number % 4 < 2 else image.transpose(Image.Transpose.TRANSPOSE)
            upright.save(root / name / f"{number:03}.png")
    return root


def test_things_at_the_edge_are_seen_with_pad_and_not_with_crop(tmp_path: Path) -> None:
    write(tmp_path / "pictures", 120)
    words = [*SMALL, f"data.root={tmp_path / 'pictures'}", "data.image_size=32", "data.resize=32", "debug=off"]
    words += [
        "trainer.max_epochs=4",
        "data.batch_size=8",
        "data.augment.crop.scale=[0.8,1]",
        "data.test_fraction=0.3",
        "optim.lr=3e-3",
    ]
    accuracy = {
        fit: imgcls.fit(imgcls.compose([*words, f"data.fit={fit}", f"run_dir={tmp_path / fit}"])).metrics[
            "test/accuracy"
        ]
        for fit in ("crop", "pad")
    }
    assert accuracy["pad"] >= accuracy["crop"] + 0.1, accuracy


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_training_and_evaluation_have_the_same_shape(fit: str, tmp_path: Path) -> None:
    write(tmp_path / "pictures", 6)
    augment = Augment(crop=RandomResizedCrop(scale=(0.3, 1.0)), flip=0.5)
    data = ImageFolder(
        tmp_path / "pictures",
        image_size=[24, 40],
        fit=fit,
        batch_size=6,
        augment=augment,
        val_fraction=0.2,
        cache=tmp_path,
    )
    data.setup()
    assert next(iter(data.train_dataloader())).images.shape == (6, 3, 24, 40)
    assert next(iter(data.evaluation_dataloader("val"))).images.shape[1:] == (3, 24, 40)
    recipe = data.recipe_of("train")
    assert recipe.side == {"crop": 46, "pad": (27, 46), "squash": (27, 46)}[fit]
    stored = data.store_of("val", evaluation=True).gather(torch.arange(1))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(stored, data.preprocessing.pixels(data.source.splits()["val"].open(0)))


def test_crops_of_padded_images_keep_the_proportions(tmp_path: Path) -> None:
    """A full crop of a padded image is the padded image, whatever the shape of the original."""
    write(tmp_path / "pictures", 6)
    crop = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    data = ImageFolder(tmp_path / "pictures", image_size=[40, 24], fit="pad", batch_size=6, augment=Augment(crop=crop))
    batch = next(iter(data.train_dataloader()))
    expected = np.stack([data.preprocessing.pixels(data.source.train.open(i)) for i in batch.index.tolist()])
    shown = batch.images * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    assert (shown.permute(0, 2, 3, 1).numpy() * 255 - expected).std() < 12, "resized twice"


def test_options(tmp_path: Path) -> None:
    own = ["data=imagefolder", f"data.root={tmp_path}"]
    assert compose([*own, "data.image_size=[96,192]", "data.fit=pad"]).data.image_size == [96, 192]
    for words, complaint in [
        (["data.image_size=[96]"], r"\[height, width\]"),
        (["data.fit=padding"], "Did you mean pad"),
        (["data.fit=pad", "data.pad_colour=[1,2]"], r"\[red, green, blue\]"),
        (["data=digits", "data.image_size=[32,48]"], "pad_crop is for square images"),
    ]:
        with pytest.raises(UserError, match=complaint):
            compose(words if "data=digits" in words else [*own, *words])
