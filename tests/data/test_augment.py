from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.transforms import v2

from imgcls.data import crops, operations, policies
from imgcls.data.augment import Augment
from imgcls.data.crops import PaddedCrop, RandomResizedCrop, flip, padded_crops, resized_crops
from imgcls.data.mixing import Mixing, _beta
from imgcls.data.policies import OPERATIONS, ColorJitter, RandAugment, RandomErasing, TrivialAugment
from imgcls.data.randomness import Draws
from imgcls.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "augment"


def pictures(count: int, size: int = 24) -> Tensor:
    """Smooth images, uint8 (N, 3, size, size)."""
    small = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(small, size=(size, size), mode="bicubic", antialias=True)
    return large.mul(255).clamp(0, 255).to(torch.uint8)


def draws(count: int, epoch: int = 0) -> Draws:
    return Draws.of(0, epoch, torch.arange(count))


AUGMENTATIONS = {
    "none": Augment(),
    "crop": Augment(crop=RandomResizedCrop(), flip=0.5),
    "padded": Augment(crop=PaddedCrop(), flip=0.5),
    "reflected": Augment(crop=PaddedCrop(mode="reflect"), flip=0.5, alternate_flip=True),
    "trivial": Augment(policy=TrivialAugment()),
    "rand": Augment(policy=RandAugment()),
    "jitter": Augment(jitter=ColorJitter(0.4, 0.4, 0.4, 0.1)),
    "erasing": Augment(erasing=RandomErasing(1.0, fill="noise")),
    "custom": Augment(extra=[lambda images, draws: images * draws.uniform(1)[:, :, None, None]]),
    "all": Augment(RandomResizedCrop(), 0.5, TrivialAugment(), ColorJitter(), RandomErasing(0.5)),
}


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_an_image_is_augmented_the_same_alone_and_in_any_batch(augment: Augment) -> None:
    images, aspect = pictures(16), torch.linspace(0.5, 2, 16)

    def run(positions: list[int]) -> Tensor:
        chosen = torch.tensor(positions)
        drawn = Draws.of(7, 3, chosen)
        augmented = augment.pixels(images[chosen], drawn, 20, aspect[chosen]).float()
        return augment.finish(augmented, chosen, drawn, 16)[0]

    together = run(list(range(16)))
    assert together.shape == (16, 3, 20, 20)
    for positions in ([5], [11, 5, 2], [15, 14, 13, 12, 11, 10, 9]):
        # the order of summation within an image may depend on the batch
        torch.testing.assert_close(run(positions), together[positions], rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_every_image_and_every_epoch_is_augmented_differently(name: str) -> None:
    augment, images = AUGMENTATIONS[name], pictures(1).expand(32, -1, -1, -1)

    def run(epoch: int) -> Tensor:
        drawn = draws(32, epoch)
        augmented = augment.pixels(images, drawn, 24).float()
        return augment.finish(augmented, torch.zeros(32, dtype=torch.int64), drawn, 2)[0]

    first, second = run(0), run(1)
    assert len(torch.unique(first.flatten(1), dim=0)) > 8
    assert not torch.equal(first, second)
    assert torch.equal(first, run(0))


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_the_input_is_not_changed(augment: Augment) -> None:
    images = pictures(8)
    before = images.clone()
    augmented = augment.pixels(images, draws(8), 24)
    augment.finish(augmented.float(), torch.arange(8), draws(8), 8)
    assert torch.equal(images, before)


def test_values_stay_in_range() -> None:
    for name, augment in AUGMENTATIONS.items():
        augmented = augment.pixels(pictures(64), draws(64), 24).float()
        assert -0.001 <= augmented.min() <= augmented.max() <= 255.001, name


def test_without_augmentation_the_pixels_are_those_of_the_store() -> None:
    images = pictures(4)
    assert torch.equal(Augment().pixels(images, draws(4), 24), images)


# ---- crops


def test_boxes_have_torchvisions_distribution() -> None:
    """Area, shape and position compared with torchvision's own parameters, for an image of 3:2."""
    aspect, count = 1.5, 4000
    boxes = RandomResizedCrop((0.35, 1.0)).boxes(draws(count), torch.full((count,), aspect))
    picture = torch.empty(3, 400, 600)
    torch.manual_seed(0)
    crops = [v2.RandomResizedCrop(8, scale=(0.35, 1.0)).make_params([picture]) for _ in range(count)]
    theirs = torch.tensor([[c["left"] / 600, c["top"] / 400, c["width"] / 600, c["height"] / 400] for c in crops])
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 1.0001).all()
    quantiles = torch.linspace(0.05, 0.95, 19)
    for ours, other in zip(_describe(boxes, aspect), _describe(theirs, aspect), strict=True):
        assert (ours.quantile(quantiles) - other.quantile(quantiles)).abs().max() < 0.04


def _describe(boxes: Tensor, aspect: float) -> tuple[Tensor, ...]:
    area, shape = boxes[:, 2] * boxes[:, 3], boxes[:, 2] / boxes[:, 3] * aspect
    return area, shape.log(), boxes[:, 0], boxes[:, 1]


def test_a_box_that_never_fits_is_the_largest_centred_one() -> None:
    boxes = RandomResizedCrop((1.0, 1.0), (1.0, 1.0)).boxes(draws(3), torch.tensor([0.5, 1.0, 4.0]))
    expected = [[0.0, 0.25, 1.0, 0.5], [0.0, 0.0, 1.0, 1.0], [0.375, 0.0, 0.25, 1.0]]
    torch.testing.assert_close(boxes, torch.tensor(expected))


def test_crops_of_a_squashed_image_have_true_shapes() -> None:
    """A circle in a wide image stays round when the box is square in the original."""
    height, width, side = 100, 200, 128
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    circle = (((x - 100) ** 2 + (y - 50) ** 2) < 40**2).to(torch.uint8) * 255
    squashed = F.interpolate(circle.expand(1, 3, -1, -1).contiguous(), size=(side, side), mode="bilinear")
    crop = RandomResizedCrop((1.0, 1.0), (1.0, 1.0))  # the middle square
    out = crop(squashed, draws(1), 64, torch.tensor([width / height]))[0, 0].float() / 255
    columns, rows = (out.amax(0) > 0.5).sum(), (out.amax(1) > 0.5).sum()
    assert columns == pytest.approx(0.8 * 64, abs=2)
    assert rows == pytest.approx(0.8 * 64, abs=2)


def test_crops_on_the_cpu_equal_those_of_other_devices() -> None:
    images = pictures(12, 40)
    boxes = RandomResizedCrop((0.1, 1.0)).boxes(draws(12), torch.ones(12))
    sampled = crops._sample_boxes(images, crops._whole_pixels(boxes, 40, 40), 32).float()
    mirrored = torch.arange(12) % 2 == 0
    ours = resized_crops(images, boxes, 32, mirrored).float()
    assert (flip(sampled, mirrored) - ours).abs().max() <= 1


def test_crops_support_channels_last_and_float() -> None:
    images = pictures(4, 40)
    boxes = RandomResizedCrop().boxes(draws(4), torch.ones(4))
    expected = resized_crops(images, boxes, 32)
    assert torch.equal(resized_crops(images.contiguous(memory_format=torch.channels_last), boxes, 32), expected)
    torch.testing.assert_close(resized_crops(images.float(), boxes, 32), expected.float(), rtol=0, atol=1.0)


def test_padded_crops_are_windows_of_the_padded_image() -> None:
    images, count = pictures(1, 16).expand(300, -1, -1, -1), 300
    cropped = PaddedCrop(0.125)(images, draws(count), 16)
    padded = F.pad(images[0], (2, 2, 2, 2))
    windows = {padded[:, y : y + 16, x : x + 16].numpy().tobytes(): (y, x) for y in range(5) for x in range(5)}
    places = [windows[picture.numpy().tobytes()] for picture in cropped]
    assert set(places) == {(y, x) for y in range(5) for x in range(5)}
    mirrored = torch.arange(count) % 3 == 0
    assert torch.equal(PaddedCrop(0.125)(images, draws(count), 16, None, mirrored), flip(cropped, mirrored))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_padded_crops_on_the_cpu_equal_those_of_other_devices(mode: str) -> None:
    images, mirrored = pictures(5, 16), torch.tensor([True, False, True, False, False])
    places = torch.tensor([[0, 4], [4, 1], [0, 0], [2, 2], [4, 4]])
    ours = padded_crops(images, places, 2, mirrored, mode)
    padded = F.pad(images.float(), (2, 2, 2, 2), mode=mode)
    windows = [padded[row, :, y : y + 16, x : x + 16] for row, (x, y) in enumerate(places.tolist())]
    assert torch.equal(ours.float(), flip(torch.stack(windows), mirrored))
    for variant in (images, images.contiguous(memory_format=torch.channels_last), images.float()):
        assert torch.equal(crops._windows(variant, places, 2, mirrored, mode), ours.to(variant.dtype))
        assert torch.equal(padded_crops(variant, places, 2, mirrored, mode), ours.to(variant.dtype))
    assert torch.equal(crops._windows(images, places, 2, None, mode), padded_crops(images, places, 2, None, mode))


def test_alternating_flips_have_both_sides_in_two_epochs() -> None:
    images = pictures(64)
    augment = Augment(flip=0.5, alternate_flip=True)
    epochs = [augment.pixels(images, draws(64, epoch), 24) for epoch in range(4)]
    assert torch.equal(epochs[1], epochs[0].flip(-1))
    assert torch.equal(epochs[2], epochs[0])
    assert torch.equal(epochs[3], epochs[1])
    flipped = (epochs[0] != images).flatten(1).any(1)
    assert 16 < flipped.sum() < 48  # a random half is mirrored first
    subset = torch.tensor([3, 50])
    assert torch.equal(augment.pixels(images[subset], Draws.of(0, 0, subset), 24), epochs[0][subset])
    with pytest.raises(UserError, match=r"flip=0\.5, not 0\.3"):
        Augment(flip=0.3, alternate_flip=True)


def test_small_images_are_enlarged_after_the_crop() -> None:
    assert PaddedCrop()(pictures(2, 16), draws(2), 32).shape == (2, 3, 32, 32)
    assert Augment().pixels(pictures(2, 16), draws(2), 32).shape == (2, 3, 32, 32)


def test_enlarging_equals_pillows() -> None:
    from PIL import Image

    image = pictures(1, 16)
    ours = crops.resize(image, 40)[0].permute(1, 2, 0).numpy().astype(int)
    theirs = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((40, 40), Image.Resampling.BICUBIC)
    assert np.abs(ours - np.asarray(theirs)).max() <= 2


def test_flip() -> None:
    images = pictures(3)
    flipped = flip(images, torch.tensor([True, False, True]))
    assert torch.equal(flipped, torch.stack([images[0].flip(-1), images[1], images[2].flip(-1)]))
    assert not torch.equal(images[0], flipped[0])


# ---- policies


def _in_floats(function: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """Without the rounding of torchvision's uint8 path."""
    return lambda image, strength: function(image / 255, strength) * 255


@pytest.mark.parametrize(
    ("ours", "theirs", "strength"),
    [
        (operations.brightness, _in_floats(v2.functional.adjust_brightness), 1.4),
        (operations.color, _in_floats(v2.functional.adjust_saturation), 0.3),
        (operations.contrast, _in_floats(v2.functional.adjust_contrast), 1.7),
        (operations.sharpness, _in_floats(v2.functional.adjust_sharpness), 1.9),
        (operations.posterize, v2.functional.posterize, 3),
        (operations.solarize, v2.functional.solarize, 100.0),
        (operations.auto_contrast, lambda image, _: v2.functional.autocontrast(image), 0),
        (operations.equalize, lambda image, _: v2.functional.equalize(image), 0),
    ],
)
def test_operations_equal_torchvisions(
    ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, Any], Tensor], strength: float
) -> None:
    images = pictures(5)
    images[1, 0] = 77  # a constant channel
    result = ours(images.float(), torch.full((5,), float(strength)))
    assert (result - theirs(images, strength).float()).abs().max() <= 1.01


def test_hue_keeps_grey_and_luma_and_can_be_reversed() -> None:
    images = pictures(2).float() / 4 + 96  # no colour that would be clipped
    turned = operations.hue(images, torch.tensor([0.5, 0.1]))
    torch.testing.assert_close(operations.grey(turned), operations.grey(images), rtol=0, atol=0.6)
    torch.testing.assert_close(operations.hue(turned, -torch.tensor([0.5, 0.1])), images, rtol=0, atol=1.5)
    grey = operations.grey(images).expand(-1, 3, -1, -1)
    torch.testing.assert_close(operations.hue(grey, torch.tensor([0.3, 0.4])), grey, rtol=0, atol=1e-2)


def test_geometric_operations() -> None:
    images = pictures(1, 16).float()
    right = operations.warp(images, OPERATIONS["translate_x"].matrix(torch.tensor([3.0])))
    torch.testing.assert_close(right[..., :-3], images[..., 3:], rtol=0, atol=1e-2)
    assert (right[..., -3:] == 0).all()
    turned = operations.warp(images, OPERATIONS["rotate"].matrix(torch.tensor([90.0])))
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), rtol=0, atol=1e-2)


def test_trivial_augment_draws_each_operation_equally_often() -> None:
    chosen: list[Tensor] = []
    original = policies.apply_operations

    def watch(images: Tensor, picked: Tensor, strengths: dict[str, Tensor], negative: Tensor) -> Tensor:
        chosen.append(picked)
        return original(images, picked, strengths, negative)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "apply_operations", watch)
        TrivialAugment()(torch.zeros(7000, 3, 4, 4), draws(7000))
    counts = torch.bincount(chosen[0], minlength=14)
    assert len(counts) == 14
    assert counts.min() > 400
    assert counts.max() < 600


def test_rand_augment_with_a_low_magnitude_changes_little() -> None:
    images = pictures(1).float().expand(200, -1, -1, -1)
    weak, strong = (RandAugment(1, magnitude)(images, draws(200)) for magnitude in (1, 30))
    assert (weak - images).abs().mean() < (strong - images).abs().mean() / 2


def test_erasing() -> None:
    images = torch.ones(2000, 3, 20, 20)
    share = 1 - RandomErasing(0.5, (0.1, 0.2), (0.5, 2.0))(images, draws(2000)).mean((1, 2, 3))
    erased = share > 0
    assert abs(erased.float().mean() - 0.5) < 0.05
    assert share[erased].min() > 0.06
    assert share[erased].max() < 0.24
    noise = RandomErasing(1.0, (1.0, 1.0), (1.0, 1.0), "noise")(images[:50], draws(50))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert len(torch.unique(noise[:, 0, 0, 0])) == 50


# ---- mixing


def constant_images(count: int) -> Tensor:
    return torch.arange(count).float()[:, None, None, None].expand(-1, 3, 20, 20).contiguous()


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.4), Mixing(cutmix=1.0), Mixing(0.2, 1.0)])
def test_labels_are_the_shares_of_the_images(mixing: Mixing) -> None:
    count = 40
    mixed, targets = mixing(constant_images(count), torch.arange(count), draws(count), count)
    assert targets.shape == (count, count)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(count).float(), rtol=1e-4, atol=1e-4)
    assert len(torch.unique((targets > 0).sum(1))) > 1 or (targets.max(1).values < 1).any()


def test_cutmix_pastes_and_mixup_blends() -> None:
    cut, _ = Mixing(cutmix=1.0)(constant_images(20), torch.arange(20), draws(20), 20)
    assert {float(value) for value in torch.unique(cut[5])} <= {4.0, 5.0}
    blended, _ = Mixing(mixup=1.0)(constant_images(20), torch.arange(20), draws(20), 20)
    assert all(len(torch.unique(picture)) == 1 for picture in blended)


def test_mixing_with_a_probability() -> None:
    _, targets = Mixing(mixup=1.0, probability=0.3)(constant_images(1000), torch.arange(1000), draws(1000), 1000)
    assert abs((targets.max(1).values < 1).float().mean() - 0.3) < 0.05


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 3.0])
def test_shares_have_a_beta_distribution(alpha: float) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    uniform = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    expected = scipy_stats.beta(alpha, alpha).ppf(uniform.numpy())
    assert np.abs(_beta(alpha, uniform).numpy() - expected).max() < 1e-4


# ---- options


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Augment(flip=1.5), "probability"),
        (lambda: PaddedCrop(4), "share of the side"),
        (lambda: RandomResizedCrop((0.9, 0.1)), "rising"),
        (lambda: RandomResizedCrop((0.5, 1.5)), "at most 1"),
        (lambda: RandAugment(2, 31), "magnitude"),
        (lambda: RandomErasing(2.0), "probability"),
        (lambda: RandomErasing(fill="black"), "mean or noise"),
        (lambda: Mixing(-1), "alphas"),
        (lambda: Mixing(1, probability=3), "probabilities"),
        (lambda: ColorJitter(2), "jitter"),
    ],
)
def test_invalid_options_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_configuration_builds_an_augmentation(file: Path) -> None:
    augment = instantiate(OmegaConf.load(file))
    assert isinstance(augment, Augment)
    assert augment.pixels(pictures(4, 16), draws(4), 16, torch.ones(4)).shape == (4, 3, 16, 16)
    assert augment.mixing is not None
    assert not augment.mixing.active
    assert augment.layout == ("squash" if file.stem in ("default", "strong") else "centre")
    for line in file.read_text().splitlines():
        name = line.strip().split(":")[0]
        if name in ("scale", "ratio", "padding", "flip", "probability", "area", "mixup", "cutmix", "fill"):
            assert "#" in line, f"{line} is not explained"


def test_crop_shares_are_uniform_in_log_shape() -> None:
    shape = RandomResizedCrop((0.01, 0.02), (0.5, 2.0)).boxes(draws(5000), torch.ones(5000))
    logs = (shape[:, 2] / shape[:, 3]).log() / math.log(2)
    assert abs(logs.mean()) < 0.05
    assert logs.std() == pytest.approx(1 / math.sqrt(3), abs=0.03)
