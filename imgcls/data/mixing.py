"""Mixup and cutmix: two pictures in one, with soft labels."""

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
    """Mix each picture with the one before it in the micro-batch, which a shuffled batch makes a random one.

    Args:
        mixup: alpha of the Beta distribution of the share, blending whole pictures (Zhang et al. 2018); 0 is off.
        cutmix: the same for pasting a box of the other picture (Yun et al. 2019); 0 is off.
        probability: that a picture is mixed at all.
        switch: probability of cutmix where both are on.
    """

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0, switch: float = 0.5) -> None:
        if min(mixup, cutmix) < 0:
            raise UserError(f"mixing.mixup={mixup} and mixing.cutmix={cutmix} are alphas: 0 (off) or more.")
        if not (0 <= probability <= 1 and 0 <= switch <= 1):
            raise UserError("mixing.probability and mixing.switch are probabilities; they lie in 0..1.")
        self.mixup, self.cutmix, self.probability, self.switch = mixup, cutmix, probability, switch

    @property
    def active(self) -> bool:
        """Whether anything is mixed."""
        return self.probability > 0 and max(self.mixup, self.cutmix) > 0

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, num_classes: int) -> tuple[Tensor, Tensor]:
        """float (N, 3, H, W) and int64 (N,) to mixed pictures and soft labels, float32 (N, C), rows of sum 1."""
        height, width = images.shape[-2:]
        drawn = draws.uniform(5)  # what the quantiles are looked up for stays on the host
        cut = self._cut(drawn[:, 0])
        share = torch.where(cut, _beta(self.cutmix, drawn[:, 1]), _beta(self.mixup, drawn[:, 1]))
        share = torch.where(drawn[:, 2] < self.probability, share, torch.ones_like(share))
        drawn, cut, share = (send(one, images.device) for one in (drawn, cut, share))

        side = torch.sqrt(1 - share)
        rows = _span(drawn[:, 3], side, height) & cut[:, None]
        columns = _span(drawn[:, 4], side, width) & cut[:, None]
        inside = rows[:, :, None] & columns[:, None, :]
        kept = 1 - inside.sum((1, 2)) / (height * width)
        share = torch.where(cut, kept, share)

        weight = torch.where(cut[:, None, None], (~inside).to(images.dtype), share.to(images.dtype)[:, None, None])
        mixed = torch.lerp(images.roll(1, 0), images, weight[:, None])
        target = F.one_hot(labels, num_classes).to(torch.float32)
        return mixed, torch.lerp(target.roll(1, 0), target, share[:, None])

    def _cut(self, drawn: Tensor) -> Tensor:
        """Which pictures are cut rather than blended, bool (N,)."""
        if self.mixup and self.cutmix:
            return drawn < self.switch
        return torch.full_like(drawn, bool(self.cutmix), dtype=torch.bool)


def _span(centre: Tensor, side: Tensor, length: int) -> Tensor:
    """Which of `length` cells lie in a stretch of share `side` around `centre`: bool (N, length)."""
    cells = (torch.arange(length, device=centre.device) + 0.5) / length
    return (cells - centre[:, None]).abs() < side[:, None] / 2


def _beta(alpha: float, uniform: Tensor) -> Tensor:
    """Beta(alpha, alpha) from uniform numbers, float32 (N,)."""
    if not alpha:
        return torch.ones_like(uniform)
    table = _beta_quantiles(alpha)
    at = uniform.to(torch.float64).numpy()
    half = np.interp(np.minimum(at, 1 - at), *table) ** (1 / alpha)
    return torch.from_numpy(np.where(at < 0.5, half, 1 - half)).to(uniform)


@lru_cache(maxsize=16)
def _beta_quantiles(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (probability, x**alpha) of the quantile function of Beta(alpha, alpha) below its median.

    In s = x**alpha the density is (1 - x)**(alpha - 1), without the pole at 0, so a trapezoid rule is exact enough.
    """
    s = np.linspace(0, 0.5**alpha, 4097)
    density = (1 - s ** (1 / alpha)) ** (alpha - 1)
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return 0.5 * area / area[-1], s
