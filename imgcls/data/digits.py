"""`data=digits`: 1,797 handwritten digits that come with scikit-learn; no network needed."""

from __future__ import annotations

import numpy as np

from imgcls.data.module import ImageDataModule
from imgcls.data.sources import Source, Split
from imgcls.data.splits import cut

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHARES = [0.7, 0.1, 0.2]  # train, validation, test


class Digits(ImageDataModule):
    """The optical digits of the UCI repository (Alpaydin and Kaynak 1998), 8x8 px, grey."""

    def find(self) -> Source:
        """All digits, split by `seed`."""
        return find_digits(self.seed)


def find_digits(seed: int) -> Source:
    """The digits as RGB pictures, 70 % to train, 10 % to validate, 20 % to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pictures = np.repeat(grey[..., None], 3, axis=3)
    everything = Split(tuple(f"digits/{n:04}" for n in range(len(grey))), digits.target, pictures)
    train, val, test = cut(everything, SHARES, seed)
    return Source(NAMES, train, val, test)
