"""Mixup and cutmix: two images in one, with soft labels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imgcls.data.batch import send
from imgcls.data.randomness import Draws
from imgcls.errors import UserError


class Mixing:
    """Mix each image with the previous one of the micro-batch, which is a random one in a shuffled batch.

    Args:
        mixup: alpha of the Beta distribution of the share when blending whole images (Zhang et al. 2018); 0 is off.
        cutmix: the same for pasting a box of the other image (Yun et al. 2019); 0 is off.
        probability: of mixing, per image.
        switch: probability of cutmix if both are on.
    """

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0, switch: float = 0.5) -> None:
        if min(mixup, cutmix) < 0:
            raise UserError(f"mixing.mixup={mixup} and mixing.cutmix={cutmix} are alphas and must be 0 (off) or more.")
        if not (0 <= probability <= 1 and 0 <= switch <= 1):
            raise UserError("mixing.probability and mixing.switch are probabilities and must be in 0..1.")
        self.mixup, self.cutmix, self.probability, self.switch = mixup, cutmix, probability, switch

    @property
    def active(self) -> bool:
        """Whether any image is mixed."""
        return self.probability > 0 and max(self.mixup, self.cutmix) > 0

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, num_classes: int) -> tuple[Tensor, Tensor]:
        """float (N, 3, H, W) and labels, int64 (N,) or (N, C), to mixed images and soft labels, float32 (N, C)."""
        height, width = images.shape[-2:]
        drawn = draws.uniform(5)  # on the CPU, where the quantiles are looked up
        cut = drawn[:, 0] < (self.switch if self.mixup and self.cutmix else bool(self.cutmix))  # rather than blended
        share = torch.where(cut, _beta(self.cutmix, drawn[:, 1]), _beta(self.mixup, drawn[:, 1]))
        share = torch.where(drawn[:, 2] < self.probability, share, torch.ones_like(share))
        drawn, cut, share = (send(values, images.device) for values in (drawn, cut, share))

        side = torch.sqrt(1 - share)
        rows = _span(drawn[:, 3], side, height) & cut[:, None]
        columns = _span(drawn[:, 4], side, width) & cut[:, None]
        inside = rows[:, :, None] & columns[:, None, :]
        share = torch.where(cut, 1 - inside.sum((1, 2)) / (height * width), share)

        weight = torch.where(cut[:, None, None], (~inside).to(images.dtype), share.to(images.dtype)[:, None, None])
        mixed = torch.lerp(images.roll(1, 0), images, weight[:, None])
        target = soft(labels, num_classes)
        return mixed, torch.lerp(target.roll(1, 0), target, share[:, None])


def soft(labels: Tensor, num_classes: int) -> Tensor:
    """float32 (N, C) of classes, int64 (N,), or of labels that are (N, C) already."""
    return (labels if labels.ndim == 2 else F.one_hot(labels, num_classes)).to(torch.float32)


def _span(centre: Tensor, side: Tensor, length: int) -> Tensor:
    """Which of `length` cells are in a span of share `side` around `centre`: bool (N, length)."""
    cells = (torch.arange(length, device=centre.device) + 0.5) / length
    return (cells - centre[:, None]).abs() < side[:, None] / 2


def _beta(alpha: float, uniform: Tensor) -> Tensor:
    """Numbers of Beta(alpha, alpha) from uniform ones, float32 (N,)."""
    if not alpha:
        return torch.ones_like(uniform)
    table = _beta_quantiles(alpha)
    probability = uniform.to(torch.float64).numpy()
    half = np.interp(np.minimum(probability, 1 - probability), *table) ** (1 / alpha)
    return torch.from_numpy(np.where(probability < 0.5, half, 1 - half)).to(uniform)


@lru_cache(maxsize=16)
def _beta_quantiles(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (probability, x**alpha) of the quantile function of Beta(alpha, alpha) below its median.

    In s = x**alpha the density is (1 - x)**(alpha - 1), without the pole at 0: the trapezoid rule is accurate enough.
    """
    s = np.linspace(0, 0.5**alpha, 4097)
    density = (1 - s ** (1 / alpha)) ** (alpha - 1)
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return 0.5 * area / area[-1], s
