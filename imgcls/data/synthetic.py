"""`data=synthetic`: generated images, for trying things out and measuring speed without files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imgcls.data.module import ImageDataModule
from imgcls.data.sources import Source, Split
from imgcls.errors import UserError
from imgcls.images.preprocessing import sides

DISTINCT_IMAGES = 256  # per split; a larger split repeats them


class Synthetic(ImageDataModule):
    """Noise with a brighter band, whose position and colour encode the class.

    Args:
        count: number of training images; a quarter as many, up to 256, are for the test.
        classes: number of classes.
        side: side of the images, px; `image_size` if None.
        **options: of ImageDataModule.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        count: int = 2048,
        classes: int = 10,
        side: int | None = None,
        **options: object,
    ) -> None:
        super().__init__(None, **options)  # type: ignore[arg-type]
        if classes < 2 or count < classes:
            raise UserError(f"data.count={count} with data.classes={classes}: needs two classes and an image of each.")
        self.count, self.classes, self.side = count, classes, side or max(sides(self.image_size))

    def find(self) -> Source:
        """Training images and, from other noise, test images."""
        names = tuple(f"class{number:03}" for number in range(self.classes))
        test = max(self.classes, min(DISTINCT_IMAGES, self.count // 4))
        return Source(names, self._generate("train", self.count, 0), None, self._generate("test", test, 1))

    def _generate(self, name: str, count: int, stream: int) -> Split:
        rng = np.random.default_rng([self.seed, stream])
        distinct = self.classes * max(1, min(count, DISTINCT_IMAGES) // self.classes)
        pictures = rng.integers(0, 150, (distinct, self.side, self.side, 3), dtype=np.uint8)
        labels = np.arange(distinct) % self.classes
        for picture, label in zip(pictures, labels, strict=True):
            start = self.side * label // (self.classes + 1)
            picture[start : start + max(1, self.side // 4), :, label % 3] += 100
        repeated = np.arange(count) % distinct
        names = tuple(f"{name}/{number:06}" for number in range(count))
        return Split(names, labels[repeated], pictures if count == distinct else pictures[repeated])
