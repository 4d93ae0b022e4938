"""Custom transforms of single decoded images: torchvision's, albumentations' and the user's own, in worker processes.

They draw from global generators (of torch, numpy and Python), which only a process has to itself. Before each image
these are seeded by (seed, epoch, image), so that its result depends neither on the batch nor on the number of workers,
and a resumed run continues with the same images. What is random cannot be stored, so each image is decoded in every
epoch.
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imgcls.data.batch import AugmentationInput, Batch, RawBatch
from imgcls.data.randomness import Draws
from imgcls.data.sources import Split
from imgcls.data.stores.store import Recipe
from imgcls.errors import UserError, describe_users_error, first_line
from imgcls.images.decoding import BadPicture
from imgcls.images.preprocessing import sides

ImageTransform = Callable[[Image.Image], Any]
"""Takes an RGB image and returns one: Pillow's, uint8 or float in 0..1, as a tensor (3, H, W) or an array (H, W, 3)."""
Stream = Callable[[Sequence[tuple[Tensor, Tensor]], int], Generator[RawBatch | Batch, None, None]]
"""Called with (positions, draws) of each batch, and the epoch."""
PER_IMAGE_LIBRARIES = ("torchvision", "albumentations")
FORKS = sys.platform == "linux"
TOLERANCE = 1e-3  # beyond 0..1, that resampling may leave


def is_per_image(transform: object) -> bool:
    """Whether `transform` is from a library whose transforms take a single image."""
    return any(base.__module__.partition(".")[0] in PER_IMAGE_LIBRARIES for base in type(transform).__mro__)


def stream_transformed(
    split: Split,
    recipe: Recipe,
    transforms: Sequence[ImageTransform],
    *,
    seed: int,
    workers: int,
    pin: bool,
    weights: Callable[[Tensor], Tensor | None],
) -> Stream:
    """A stream of the training batches of `split` for `Loader`, decoded and transformed in `workers` processes.

    A transformed image of the recipe's size stays as it is; any other is resized by the recipe.
    """
    plan = _Plan()
    loader: DataLoader[Any] = DataLoader(
        _Images(split, recipe, tuple(transforms), seed),
        batch_size=None,
        sampler=plan,
        num_workers=workers,
        # A fork is quick, and workers that end with their epoch leave none for the garbage collector, which takes
        # seconds to end them. Where a worker has to import everything again, they stay.
        multiprocessing_context="fork" if FORKS else None,
        persistent_workers=not FORKS,
        collate_fn=_as_is,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # not the global one, which dropout uses
    )
    labels = torch.from_numpy(split.labels)

    def stream(batches: Sequence[tuple[Tensor, Tensor]], epoch: int) -> Generator[RawBatch | Batch, None, None]:
        plan.batches = [(positions, draws, epoch) for positions, draws in batches]
        answers = iter(loader)
        try:
            for positions, draws in batches:
                answer = next(answers)
                if isinstance(answer, str):
                    raise UserError(answer)
                pixels, aspects = (torch.from_numpy(array) for array in answer)
                augmentation = AugmentationInput(Draws.of(seed, epoch, draws), aspects)
                images = pixels.pin_memory() if pin else pixels
                yield RawBatch(
                    images.permute(0, 3, 1, 2), labels[positions], positions, augmentation, weights(positions)
                )
            next(answers, None)  # ends the workers
        finally:
            del answers

    return stream


@dataclass
class _Plan:
    """The batches of the current epoch, as a sampler: the workers stay, the plan changes."""

    batches: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@dataclass(frozen=True)
class _Images(Dataset[Any]):
    """Transformed batches, by (positions, draws, epoch)."""

    split: Split
    recipe: Recipe
    transforms: tuple[ImageTransform, ...]
    seed: int

    def __getitem__(self, batch: tuple[Tensor, Tensor, int]) -> tuple[np.ndarray, np.ndarray] | str:
        """Pixels, uint8 (n, side, side, 3), and width / height, float32 (n,); or a message on what went wrong.

        Arrays, which travel through a pipe: shared memory, that tensors need, is scarce in containers.
        """
        positions, draws, epoch = batch
        seeds = Draws.of(self.seed, epoch, draws).stream("per_image").keys.tolist()
        pixels, aspects = np.empty(self.recipe.shape(len(seeds)), np.uint8), np.ones(len(seeds), np.float32)
        height, width = sides(self.recipe.side)
        for row, (position, seed) in enumerate(zip(positions.tolist(), seeds, strict=True)):
            try:
                picture = self._transformed(position, seed & (2**63 - 1))
            except UserError as error:
                return str(error)
            aspects[row] = picture.width / picture.height if self.recipe.fit == "crop" else width / height
            fits = picture.size == (width, height)
            pixels[row] = np.asarray(picture) if fits else self.recipe.pixels(picture)
        return pixels, aspects

    def _transformed(self, position: int, seed: int) -> Image.Image:
        name = self.split.names[position]
        try:
            picture = self.split.open(position)
        except BadPicture as error:
            raise UserError(f"{name} could be read before training, but not now: {error.reason}.") from error
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        for transform in self.transforms:
            try:
                picture = as_picture(_call(transform, picture, seed))
            except Exception as error:
                what = f"data.augment.per_image: {type(transform).__name__} failed for {name}."
                own = describe_users_error(error)
                reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
                raise UserError(f"{what} {reason}\n{own[0] if own else ''}".strip()) from error
        return picture


def _call(transform: ImageTransform, picture: Image.Image, seed: int) -> Any:
    of_albumentations: Any = transform
    if hasattr(transform, "set_random_seed"):
        of_albumentations.set_random_seed(seed % 2**32)
    if any(base.__module__.partition(".")[0] == "albumentations" for base in type(transform).__mro__):
        return of_albumentations(image=np.asarray(picture))["image"]
    return transform(picture)


def as_picture(value: Any) -> Image.Image:
    """What a transform returned, as an RGB image.

    Args:
        value: a Pillow image, or uint8 in 0..255 or float in 0..1: a tensor (3, H, W), or an array (H, W, 3).

    Raises:
        UserError: it is something else, or normalised.
    """
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    array = value.permute(1, 2, 0).numpy() if isinstance(value, Tensor) and value.ndim == 3 else value
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[2] != 3:
        what = tuple(value.shape) if hasattr(value, "shape") else type(value).__name__
        raise UserError(f"it returned {what}: return an image, a tensor (3, H, W) or an array (H, W, 3)")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating) or array.min() < -TOLERANCE or array.max() > 1 + TOLERANCE:
            raise UserError(
                f"it returned {array.dtype} in {array.min():.3g}..{array.max():.3g}: floats must be in 0..1, "
                "and imgcls normalises"
            )
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


def _as_is(batch: Any) -> Any:
    return batch


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C is for the training, which finishes its step and needs the images for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
