"""Augmentation of whole batches on their device, different for each image.

All random numbers come from the image's own Draws, so the result does not depend on the rest of the batch.
Images are (N, 3, H, W), uint8 or float, with values in 0..255 until they are normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from imgcls.data.crops import Layout, PaddedCrop, RandomResizedCrop, flip, resize
from imgcls.data.mixing import Mixing, soft
from imgcls.data.per_image import ImageTransform, is_per_image
from imgcls.data.randomness import Draws
from imgcls.errors import UserError
from imgcls.images.preprocessing import Size

Transform = Callable[[Tensor, Draws], Tensor]


class Augment:
    """Crop, flip, policy, colour jitter and custom transforms; then, on normalised images, erasing and mixing.

    Raises UserError for a transform in a place where it does not belong.

    Args:
        crop: RandomResizedCrop, PaddedCrop, or None for the image as in evaluation.
        flip: probability of mirroring left to right; 0 where sides matter, as with digits.
        alternate_flip: mirror each image in every second epoch, half of them in the odd ones (Jordan 2024), so that
            two epochs have both sides of all; only with `flip` of 1/2.
        policy: TrivialAugment or RandAugment.
        jitter: ColorJitter.
        erasing: RandomErasing.
        mixing: Mixing, which makes the labels soft: float (N, C).
        extra: further transforms, each called as transform(float images in 0..255, draws).
        per_image: transforms of single decoded images, before all others; see `imgcls.data.per_image`.
    """

    def __init__(
        self,
        crop: RandomResizedCrop | PaddedCrop | None = None,
        flip: float = 0.0,
        policy: Transform | None = None,
        jitter: Transform | None = None,
        erasing: Transform | None = None,
        mixing: Mixing | None = None,
        extra: Sequence[Transform] = (),
        alternate_flip: bool = False,
        per_image: Sequence[ImageTransform] = (),
    ) -> None:
        places = {"crop": crop, "policy": policy, "jitter": jitter, "erasing": erasing, "mixing": mixing}
        for name, transform in [*places.items(), *(("extra", transform) for transform in extra)]:
            if is_per_image(transform):
                raise UserError(
                    f"data.augment.{name}: {type(transform).__name__} transforms a single image, and this place whole "
                    "batches. It belongs in data.augment.per_image=[…]."
                )
        for one in per_image:
            if not callable(one):
                raise UserError(f"data.augment.per_image: {one!r} cannot be called. Give transforms of an image.")
        if not 0 <= flip <= 1:
            raise UserError(f"augment.flip={flip} is a probability and must be in 0..1.")
        if alternate_flip and flip != 0.5:
            raise UserError(
                f"augment.alternate_flip=true mirrors each image in every second epoch: it needs flip=0.5, not {flip}."
            )
        self.alternate_flip = alternate_flip
        self.crop, self.flip, self.policy, self.jitter = crop, flip, policy, jitter
        self.erasing, self.mixing, self.extra, self.per_image = erasing, mixing, tuple(extra), tuple(per_image)

    @property
    def changes(self) -> bool:
        """Whether training sees other images than evaluation."""
        mixes = self.mixing is not None and self.mixing.active
        return bool(self.crop or self.flip or self.policy or self.jitter or self.erasing or mixes or self.extra)

    @property
    def layout(self) -> Layout:
        """The layout of the store that the crop needs."""
        return self.crop.layout if self.crop is not None else "centre"

    def pixels(self, images: Tensor, draws: Draws, size: Size, aspect: Tensor | None = None) -> Tensor:
        """Apply everything before normalisation: (N, 3, H, W) to `size`, values in 0..255."""
        mirrored = self._mirrored(draws) if self.flip else None
        if self.crop is None:
            images = flip(resize(images, size), mirrored)
        else:
            images = self.crop(images, draws.stream("crop"), size, aspect, mirrored)
        transforms = [("policy", self.policy), ("jitter", self.jitter)]
        transforms += [(f"extra{position}", transform) for position, transform in enumerate(self.extra)]
        for name, transform in transforms:
            if transform is not None:
                images = transform(images.to(torch.float32), draws.stream(name))
        return images

    def _mirrored(self, draws: Draws) -> Tensor:
        """Which images are mirrored, bool (N,)."""
        if not self.alternate_flip:
            return draws.stream("flip").uniform(1)[:, 0] < self.flip
        first = draws.of_all_epochs.stream("flip").uniform(1)[:, 0] < 0.5
        return first if draws.epoch % 2 == 0 else ~first

    def finish(self, images: Tensor, labels: Tensor, draws: Draws, num_classes: int) -> tuple[Tensor, Tensor]:
        """Apply everything after normalisation; labels are int64 (N,), or float (N, C) after mixing."""
        if self.erasing is not None:
            images = self.erasing(images, draws.stream("erasing"))
        if self.mixing is not None and self.mixing.active:
            return self.mixing(images, labels, draws.stream("mixing"), num_classes)
        return images, labels

    def finish_weighted(
        self, images: Tensor, labels: Tensor, weights: Tensor | None, draws: Draws, num_classes: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`finish`, by which the weights of the images, float32 (N,), are mixed like the labels."""
        if weights is None or self.mixing is None or not self.mixing.active:
            return *self.finish(images, labels, draws, num_classes), weights
        columns = torch.cat([soft(labels, num_classes), weights[:, None]], 1)
        images, columns = self.finish(images, columns, draws, num_classes)
        return images, columns[:, :-1], columns[:, -1]
