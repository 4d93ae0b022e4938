"""TrivialAugment, RandAugment and colour jitter for whole batches.

Images are float (N, 3, H, W) with values in 0..255. The images of a batch are grouped by their operation; all
geometric operations are one sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from imgcls.data import operations
from imgcls.data.batch import send
from imgcls.data.randomness import Draws
from imgcls.errors import UserError

BINS = 31
"""Number of strengths, as in both papers."""


class Operation(NamedTuple):
    """An operation that a policy can choose."""

    strength: str
    """The key of its strength in `strengths` of the policy; '' if it has none."""
    signed: bool
    """Whether the strength is drawn with both signs."""
    apply: Callable[[Tensor, Tensor], Tensor] | None = None
    """New images from images and strengths; None for an operation with a `matrix`."""
    matrix: Callable[[Tensor], Tensor] | None = None
    """(n, 2, 3) from strengths, for `operations.warp`."""


def _enhance(apply: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    return Operation("enhance", True, lambda images, strength: apply(images, 1 + strength))


def _identity_except(row: int, column: int) -> Callable[[Tensor], Tensor]:
    """The identity matrix with the strength at one position."""

    def matrix(strength: Tensor) -> Tensor:
        matrices = torch.eye(2, 3).repeat(len(strength), 1, 1)
        matrices[:, row, column] = strength
        return matrices

    return matrix


def _rotation(degrees: Tensor) -> Tensor:
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    zero = torch.zeros_like(cos)
    return torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)


OPERATIONS: dict[str, Operation] = {
    "identity": Operation("", False, lambda images, _: images),
    "shear_x": Operation("shear", True, matrix=_identity_except(0, 1)),
    "shear_y": Operation("shear", True, matrix=_identity_except(1, 0)),
    "translate_x": Operation("translate", True, matrix=_identity_except(0, 2)),
    "translate_y": Operation("translate", True, matrix=_identity_except(1, 2)),
    "rotate": Operation("rotate", True, matrix=_rotation),
    "brightness": _enhance(operations.brightness),
    "color": _enhance(operations.color),
    "contrast": _enhance(operations.contrast),
    "sharpness": _enhance(operations.sharpness),
    "posterize": Operation("posterize", False, operations.posterize),
    "solarize": Operation("solarize", False, operations.solarize),
    "auto_contrast": Operation("", False, operations.auto_contrast),
    "equalize": Operation("", False, operations.equalize),
}


def apply_operations(images: Tensor, chosen: Tensor, strengths: dict[str, Tensor], negative: Tensor) -> Tensor:
    """Apply OPERATIONS[chosen], int64 (N,), to each image with its strength, of opposite sign if `negative`."""
    out, geometric = images.clone(), []
    for number, operation in enumerate(OPERATIONS.values()):
        members = (chosen == number).nonzero()[:, 0]
        if not len(members):
            continue
        strength = strengths[operation.strength][members] if operation.strength else torch.zeros(len(members))
        if operation.signed:
            strength = torch.where(negative[members], -strength, strength)
        if operation.matrix is not None:
            geometric.append((members, operation.matrix(strength)))
        elif operation.apply is not None:
            at = send(members, images.device)
            out[at] = operation.apply(images[at], send(strength, images.device))
    if geometric:
        at = send(torch.cat([members for members, _ in geometric]), images.device)
        matrices = send(torch.cat([matrices for _, matrices in geometric]), images.device)
        out[at] = operations.warp(images[at], matrices)
    return out


def _scale_strengths(
    level: Tensor, *, shear: float, translate: float, rotate: float, enhance: float, posterize: int
) -> dict[str, Tensor]:
    """The strength of each kind of operation at `level` in 0..1, (N,), from its value at level 1."""
    return {
        "shear": shear * level,
        "translate": translate * level,
        "rotate": rotate * level,
        "enhance": enhance * level,
        "posterize": 8 - (posterize * level).round(),
        "solarize": 255 * (1 - level),
    }


class TrivialAugment:
    """One random operation with a random strength for each image: TrivialAugment Wide (Müller and Hutter 2021)."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """New float images of the same shape."""
        drawn = draws.uniform(3)
        chosen = (drawn[:, 0] * len(OPERATIONS)).to(torch.int64)
        level = (drawn[:, 1] * BINS).floor() / (BINS - 1)
        strengths = _scale_strengths(level, shear=0.99, translate=32, rotate=135, enhance=0.99, posterize=6)
        return apply_operations(images, chosen, strengths, drawn[:, 2] < 0.5)


class RandAugment:
    """Several random operations in sequence, all with the same strength (Cubuk et al. 2020).

    Args:
        operations: number of operations.
        magnitude: their strength, 0 to 30.
    """

    def __init__(self, operations: int = 2, magnitude: int = 9) -> None:
        if operations < 1 or not 0 <= magnitude < BINS:
            raise UserError(
                f"RandAugment takes operations of 1 or more and a magnitude of 0 to {BINS - 1}, "
                f"not {operations} and {magnitude}."
            )
        self.operations, self.magnitude = operations, magnitude

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """New float images of the same shape."""
        level = torch.full((len(images),), self.magnitude / (BINS - 1))
        translate = 150 / 331 * images.shape[-1]
        strengths = _scale_strengths(level, shear=0.3, translate=translate, rotate=30, enhance=0.9, posterize=4)
        drawn = draws.uniform(2 * self.operations).view(len(images), self.operations, 2)
        for number in range(self.operations):
            chosen = (drawn[:, number, 0] * len(OPERATIONS)).to(torch.int64)
            images = apply_operations(images, chosen, strengths, drawn[:, number, 1] < 0.5)
        return images


class ColorJitter:
    """Random changes of brightness, contrast, saturation and hue, in this order.

    Args:
        brightness: the factor is in 1 - brightness .. 1 + brightness.
        contrast: the same for the contrast.
        saturation: the same for the saturation.
        hue: colours are rotated by up to this share of the circle in both directions; at most 0.5.
    """

    def __init__(
        self, brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2, hue: float = 0.0
    ) -> None:
        if min(brightness, contrast, saturation, hue) < 0 or max(brightness, contrast, saturation) > 1 or hue > 0.5:
            raise UserError("jitter.brightness, contrast and saturation must be in 0..1, jitter.hue in 0..0.5.")
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """New float images of the same shape."""
        drawn = send(draws.uniform(4, -1.0, 1.0), images.device)
        if self.brightness:
            images = operations.brightness(images, 1 + self.brightness * drawn[:, 0])
        if self.contrast:
            images = operations.contrast(images, 1 + self.contrast * drawn[:, 1])
        if self.saturation:
            images = operations.color(images, 1 + self.saturation * drawn[:, 2])
        if self.hue:
            images = operations.hue(images, self.hue * drawn[:, 3])
        return images


class RandomErasing:
    """Erase a random box of normalised images with the mean or with noise (Zhong et al. 2020).

    Args:
        probability: of erasing, per image.
        area: smallest and largest share of the image.
        ratio: smallest and largest width / height of the box.
        fill: `mean`, which is 0 in normalised images, or `noise`, normal with variance 1.
    """

    def __init__(
        self,
        probability: float = 0.25,
        area: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        fill: str = "mean",
    ) -> None:
        if not 0 <= probability <= 1 or not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise UserError("erasing.probability must be in 0..1; area and ratio rising pairs above 0, area up to 1.")
        if fill not in ("mean", "noise"):
            raise UserError(f"erasing.fill={fill!r} must be mean or noise.")
        self.probability, self.area, self.ratio, self.fill = probability, area, ratio, fill

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """New normalised float images of the same shape."""
        height, width = images.shape[-2:]
        drawn = draws.uniform(5)
        members = (drawn[:, 0] < self.probability).nonzero()[:, 0]
        if not len(members):
            return images
        area = self.area[0] + drawn[members, 1] * (self.area[1] - self.area[0])
        low, high = torch.tensor(self.ratio).log()
        shape = torch.exp(low + drawn[members, 2] * (high - low))
        columns = _span(torch.sqrt(area * shape), drawn[members, 3], width)
        rows = _span(torch.sqrt(area / shape), drawn[members, 4], height)
        at = send(members, images.device)
        box = send(rows, images.device)[:, None, :, None] & send(columns, images.device)[:, None, None, :]
        fill: float | Tensor = 0.0
        if self.fill == "noise":
            noise = _normal(draws.of_pictures(members), images[0].numel()).view(-1, *images.shape[1:])
            fill = send(noise.to(images.dtype), images.device)
        return images.index_copy(0, at, torch.where(box, fill, images[at]))


def _span(share: Tensor, place: Tensor, length: int) -> Tensor:
    """A span of `share` of `length` cells, at position `place` in 0..1 of its possible starts: bool (n, length)."""
    cells = (share * length).round().clamp(1, length)
    first = (place * (length - cells + 1)).floor()
    index = torch.arange(length)
    return (index >= first[:, None]) & (index < (first + cells)[:, None])


def _normal(draws: Draws, count: int) -> Tensor:
    """float32 (n, count), normal with mean 0 and variance 1, by Box and Muller."""
    drawn = draws.stream("noise").uniform(2 * count).view(len(draws), 2, count)
    return torch.sqrt(-2 * torch.log(1 - drawn[:, 0])) * torch.cos(2 * torch.pi * drawn[:, 1])
