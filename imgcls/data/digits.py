"""`data=digits`: the 1,797 handwritten digits of scikit-learn; needs no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imgcls.data.module import ImageDataModule
from imgcls.data.sources import Source, Split
from imgcls.data.splits import cut

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_VALUE = 16
TEST_SHARE = 0.2
VAL_SHARE_OF_TRAIN = 0.125  # 10 % of all


class Digits(ImageDataModule):
    """The optical digits of the UCI repository (Alpaydin and Kaynak 1998), 8x8 px, grey, split 70/10/20 by `seed`."""

    def __init__(self, root: str | Path | None = None, **options: object) -> None:
        super().__init__(root, **{"val_fraction": VAL_SHARE_OF_TRAIN, **options})  # type: ignore[arg-type]

    def find(self) -> Source:
        """All digits, 20 % of them for the test; validation is split off by `val_fraction`."""
        return find_digits(self.seed)


def find_digits(seed: int) -> Source:
    """The digits as RGB images, 80 % for training and 20 % for the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / MAX_VALUE)).astype(np.uint8)
    names = tuple(f"digits/{number:04}" for number in range(len(grey)))
    everything = Split(names, digits.target, np.repeat(grey[..., None], 3, axis=3))
    train, test = cut(everything, [1 - TEST_SHARE, TEST_SHARE], seed)
    return Source(NAMES, train, None, test)
