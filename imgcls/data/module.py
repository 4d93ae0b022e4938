"""The base class of all data sets: a LightningDataModule that loads whole batches and finishes them on the device.

A new data set implements `find`, and `download` if it can; everything else is here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from imgcls.aws.download import local_root, synchronise
from imgcls.aws.s3 import is_remote
from imgcls.config.choices import NORMALIZATIONS, ON_BAD, SAMPLERS, STORE_KINDS
from imgcls.data.augment import Augment
from imgcls.data.batch import Batch, RawBatch
from imgcls.data.batched import BatchedData
from imgcls.data.batches import batches_of, scaled_weights
from imgcls.data.lists import map_names
from imgcls.data.loader import EvaluationPlan, Loader, Plan
from imgcls.data.normalization import normalise
from imgcls.data.packed import is_archive, unpack_once, unpacked_folder
from imgcls.data.per_image import stream_transformed
from imgcls.data.sources import SPLITS, BadFile, Source, Split
from imgcls.data.splits import shared_groups, with_groups, with_validation
from imgcls.data.stores.placement import on_device, open_store
from imgcls.data.stores.statistics import channel_statistics
from imgcls.data.stores.store import Recipe, Store, evaluation_recipe, training_recipe
from imgcls.data.stores.streamed import StreamedStore
from imgcls.errors import UserError
from imgcls.images.channels import RGB, Depth, spread
from imgcls.images.preprocessing import (
    FITS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PAD_COLOUR,
    Preprocessing,
    Size,
    as_size,
    sides,
)
from imgcls.system.cache import DESCRIPTIONS, cache_folder, hold
from imgcls.system.checks import check_value, choice, whole
from imgcls.system.machine import available_cores
from imgcls.system.positions import spread_positions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imgcls.data.teaching import Teacher

log = logging.getLogger(__name__)

Statistics = tuple[Sequence[float], Sequence[float]]


@dataclass
class Opened:
    """The source that a data module has found, and the stores that it has opened so far."""

    source: Source | None = None
    stores: dict[tuple[str, Recipe], Store] = field(default_factory=dict)
    held: list[IO[bytes]] = field(default_factory=list)
    """Open files of what the images need in the cache, which is not removed meanwhile."""
    whole: Whole | None = None
    """Where the splits are parts of the training images of another data module; see `imgcls.data.folds`."""


@dataclass
class Whole:
    """The data module whose training images the splits are parts of, with the positions of each split, int64 (n,)."""

    images: ImageDataModule
    places: dict[str, np.ndarray]


class ImageDataModule(BatchedData):
    """Images and labels of a data set, as batches.

    Args:
        root: folder of the data set; or an archive of it (zip, tar), or s3://bucket/prefix, which `prepare_data`
            unpacks or copies to a folder in `cache`.
        batch_size: images per optimiser step, over all devices and micro-batches.
        image_size: side of the square input of the model, or its (height, width), px.
        resize: shorter side before the centre crop in evaluation, px; image_size / 0.875 if None.
        fit: `crop` cuts the centre out, `pad` keeps the whole image with a border, `squash` changes its aspect ratio.
        pad_colour: red, green and blue of the border in 0..255.
        channels: of the images: 3 is RGB, 1 grey, others the pages or bands of TIFF files and `.npy` arrays.
        bits: of the pixels: 8, or 16, which keeps what files with more than 8 have.
        interpolation: Pillow's filter for all resizing before the store.
        num_workers: threads that decode images; `auto`: as many as processor cores.
        val_fraction: share of the training images used for validation if the data set has no validation images.
        group: a regular expression on the names of the images: those in which its first parentheses match the same text
            are never cut into two splits.
        seed: decides the split.
        order_seed: decides the order and the augmentation; `seed` if None.
        store: where decoded pixels are kept: `memory`, `disk`, `device`, `none`, or `auto`; or `jpeg`, compressed on
            disk.
        jpeg_quality: of a compressed store, 1 to 100.
        augment: augmentation of the training images; None: as in evaluation.
        normalization: `pretrained` (`pretrained_statistics`, or ImageNet's if there are none), `imagenet`,
            `dataset` (computed from the training images), or [means, stds] of pixels in 0..1.
        sampler: `shuffle`, or `balanced`, which draws each class equally often.
        on_bad: `skip` leaves out images that cannot be read, `error` ends with a message.
        cache: folder for stores on disk; the user's cache folder if None.
        micro_batch_size: maximum number of images per forward pass of a device; None: its whole share of the batch.
        world_size: processes that share a batch, if no trainer is attached.
        unlabeled: folder of images without labels, which a teacher's answers are learnt for.
        pretrained_statistics: (means, stds) that the backbone's weights were trained with.
        opened: the source and stores of another data module of the same data set.
        fold: the fold of a cross-validation that `opened` holds the images of; see `imgcls.data.folds`.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        batch_size: int = 64,
        image_size: Size | Sequence[int] = 224,
        resize: int | None = None,
        fit: str = "crop",
        pad_colour: Sequence[int] = PAD_COLOUR,
        channels: int = 3,
        bits: int = 8,
        interpolation: str = "bicubic",
        num_workers: int | str = "auto",
        val_fraction: float = 0.1,
        group: str | None = None,
        seed: int = 0,
        order_seed: int | None = None,
        store: str = "auto",
        jpeg_quality: int = 90,
        augment: Augment | None = None,
        normalization: str | Statistics = "pretrained",
        sampler: str = "shuffle",
        on_bad: str = "skip",
        cache: str | Path | None = None,
        micro_batch_size: int | None = None,
        world_size: int = 1,
        unlabeled: str | Path | None = None,
        pretrained_statistics: Statistics | None = None,
        opened: Opened | None = None,
        fold: str | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            world_size=world_size,
            order_seed=seed if order_seed is None else order_seed,
            sampler=sampler,
        )
        check_value("data.store", store, choice(*STORE_KINDS))
        check_value("data.jpeg_quality", jpeg_quality, whole(1, 100))
        self.jpeg_quality = jpeg_quality
        check_value("data.sampler", sampler, choice(*SAMPLERS))
        check_value("data.on_bad", on_bad, choice(*ON_BAD))
        if isinstance(normalization, str):
            check_value("data.normalization", normalization, choice(*NORMALIZATIONS))
        if augment is not None and not isinstance(augment, Augment):
            raise UserError(
                f"data.augment: {type(augment).__name__} is no imgcls.data.augment.Augment. Transforms of single "
                "images, such as those of torchvision, belong in its list per_image: data.augment.per_image=[…]."
            )
        if fold is not None and (opened is None or opened.whole is None):
            raise UserError(
                f"data.fold={fold}: imgcls.fit holds it out. A data module alone: imgcls.data.folds.open_fold."
            )
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size} must be 1 or more.")
        self.address = str(root) if is_remote(root) else None
        """s3://bucket/prefix from which the images are downloaded; None for a local folder."""
        self.image_size, self.interpolation = as_size(image_size), interpolation
        self.resize = resize if resize is not None else round(min(sides(image_size)) / 0.875)
        check_value("data.fit", fit, choice(*FITS))
        self.fit, self.pad_colour, self.depth = fit, tuple(pad_colour), Depth(channels, bits)
        if self.depth != RGB and augment is not None and augment.per_image:
            raise UserError("data.augment.per_image is for RGB images of 8 bits, not for other channels.")
        self.num_workers = available_cores() if num_workers == "auto" else max(1, int(num_workers))
        self.val_fraction, self.store_kind, self.on_bad = val_fraction, store, on_bad
        self.seed, self.group = seed, group
        self.augment, self.normalization = augment or Augment(), normalization
        self.cache = Path(cache).expanduser() if cache is not None else cache_folder()
        self.root = local_root(root, self.cache)
        self.archive_file = self.root if is_archive(self.root) else None
        """The archive that the images are unpacked from; None for a folder."""
        if self.archive_file is not None:
            self.root = unpacked_folder(self.archive_file, self.cache)
        self.pretrained_statistics = pretrained_statistics
        self.opened = opened or Opened()
        self.min_classes = 2  # which `find` demands
        self.unlabeled = unlabeled
        self.teacher: Teacher | None = None
        """Whose answers are joined to the labels of the training batches."""
        self._computed: Statistics | None = None

    # ---- implemented by a data set

    def download(self) -> None:
        """Download the files if they are missing; called once on each machine."""

    def find(self) -> Source:
        """Names, labels and images of the splits. Raises UserError if they are not as expected."""
        raise NotImplementedError(f"{type(self).__name__} must implement find().")

    # ---- the data set

    @property
    def source(self) -> Source:
        """The splits, without the unreadable images of those decoded so far."""
        if self.opened.source is None:
            source = self.find()
            if self.archive_file is not None and self.root is not None:
                try:
                    self.opened.held.append(hold(self.root / DESCRIPTIONS["unpacked"]))  # which unpack_once has written
                except OSError as error:
                    raise UserError(f"{self.root} was removed meanwhile. Run the same command again.") from error
            if self.group is not None and source.train.groups is None:
                source = with_groups(source, self.group)
            source = replace(source, notes=(*source.notes, *shared_groups(source)))
            split = source.val is None and self.val_fraction
            source = with_validation(source, self.val_fraction, self.seed) if split else source
            self.opened.source = map_names(source, self.cache)
        return self.opened.source

    @property
    def bad_files(self) -> Sequence[BadFile]:
        """The images that are left out because they cannot be read, as far as they have been found."""
        return self.source.bad

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image to the model's input; `normalization=dataset` decodes the training images first."""
        mean, std = map(tuple, self._statistics())
        return replace(self._shape, mean=mean, std=std)

    @property
    def _shape(self) -> Preprocessing:
        """The preprocessing, with the normalisation of ImageNet: it need not be computed for the shape."""
        return Preprocessing(
            self.image_size,
            self.resize,
            self.interpolation,
            fit=self.fit,
            pad_colour=self.pad_colour,  # type: ignore[arg-type]
            channels=self.depth.channels,
            bits=self.depth.bits,
        )

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted by the normalisation from the channels in 0..1."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Divisor of the normalisation for the channels."""
        return self.preprocessing.std

    def _statistics(self) -> Statistics:
        if not isinstance(self.normalization, str):
            mean, std = self.normalization
            return mean, std
        if self.normalization == "dataset":
            if self._computed is None:
                self._computed = channel_statistics(self.store_of("train"))
            return self._computed
        known = self.pretrained_statistics if self.normalization == "pretrained" else None
        mean, std = known or (IMAGENET_MEAN, IMAGENET_STD)
        return spread(mean, self.depth.channels), spread(std, self.depth.channels)

    # ---- Lightning's hooks

    def prepare_data(self) -> None:
        """Download the images that are not on this machine yet; Lightning calls it once on each."""
        if self.address is not None and self.root is not None:
            synchronise(self.address, self.root)
        elif self.archive_file is not None and self.root is not None:
            unpack_once(self.archive_file, self.root)
        else:
            self.download()

    def setup(self, stage: str | None = None) -> None:
        """Find the images and decode those of the stage: `fit`, `validate`, `test`, `predict`, or all if None."""
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": (self.tested,), "predict": ("test",)}
        for split in splits[stage] if stage is not None else SPLITS:
            if split in self.source.splits():
                self.store_of(split)

    def train_dataloader(self) -> Loader[RawBatch | Batch]:
        """Training batches, in another order per epoch."""
        loader = super().train_dataloader()
        return self.teacher.teach(loader) if self.teacher is not None else loader

    def _count(self, name: str, *, evaluation: bool = True) -> int:
        return len(self.store_of(name, evaluation=evaluation))

    def training_examples(self, count: int, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Training images as the model sees them in `epoch`: augmented, with labels from before any mixing.

        Args:
            count: number of images, spread evenly over the split.
            epoch: counted from 0.

        Returns:
            Pixels, uint8 (N, S, S, C), and labels, int64 (N,).
        """
        self.store_of("train")  # which leaves out what cannot be read
        split = self._need("train")
        plan = EvaluationPlan(len(split), count)
        plan.positions = torch.from_numpy(spread_positions(len(split), count))
        loader: Any = self._make_loader("train", plan, training=True)
        loader.epoch, loader.finish = epoch, self._finish_without_trainer
        (batch,) = loader
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        pixels = (batch.images.float().cpu() * std + mean).clamp(0, 1).mul(255).round().byte()
        return pixels.permute(0, 2, 3, 1).contiguous().numpy(), split.labels[plan.positions.numpy()]

    def show_batch(self, count: int = 9, epoch: int = 0) -> Figure:
        """`training_examples` with their class names, as a figure of matplotlib."""
        from imgcls.data.showing import image_grid, label_text

        if self.opened.source is None:
            self.prepare_data()
        images, labels = self.training_examples(count, epoch)
        return image_grid(images, [label_text(self.class_names, label) for label in labels])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment (in training) and normalise a whole batch on its device."""
        if not isinstance(batch, RawBatch):
            return batch
        images, labels, weights, augmentation = batch.images, batch.labels, batch.weights, batch.augmentation
        with torch.no_grad():
            if augmentation is not None:
                images = self.augment.pixels(images, augmentation.draws, self.image_size, augmentation.aspect)
            images = self.normalise(images)
            if augmentation is not None:
                images, labels, weights = self.augment.finish_weighted(
                    images, labels, weights, augmentation.draws, self.num_classes
                )
        if self.trainer is not None and self._running():
            images = self.trainer.precision_plugin.convert_input(images)
        return Batch(images, labels, batch.index, weights)

    def test_on(self, split: str, class_names: Sequence[str]) -> None:
        """Use the images of `split`, or of `all` splits, as the test images, with labels by `class_names`.

        The data set may have a single class. Raises UserError for a class that is not among `class_names`, and for a
        missing split.
        """
        self.min_classes = 1
        tested = Split.joined(list(self.source.splits().values())) if split == "all" else self._need(split)
        self.opened = Opened(self.source.tested_on(tested, class_names), held=self.opened.held)

    # ---- inside

    def store_of(self, name: str, *, evaluation: bool = False) -> Store:
        """The pixels of a split, decoded on first use; those of `train` as training needs them."""
        split, recipe = self._need(name), self.recipe_of(name, evaluation=evaluation)
        if (name, recipe) not in self.opened.stores:
            changing = self.augment.per_image and name == "train" and not evaluation
            self.opened.stores[name, recipe] = store = open_store(
                split,
                recipe,
                "none" if changing else self.store_kind,
                cache=self.cache,
                title=f"{type(self).__name__}, {name}",
                workers=self.num_workers,
                processes=self._processes_here(),
                quality=self.jpeg_quality,
                on_bad=self.on_bad,
            )
            if store.bad:
                self._leave_out(name, split, store.bad)
        return self.opened.stores[name, recipe]

    def aspects_of(self, name: str) -> Tensor:
        """float32 (N,): width / height of what the stored pixels of a split show, before they were squashed."""
        store = self.store_of(name)
        if self.fit == "crop":
            return torch.from_numpy(store.aspects)
        height, width = sides(self.image_size)
        return torch.full((len(store),), width / height)

    def recipe_of(self, name: str, *, evaluation: bool = False) -> Recipe:
        """How the pixels of a split are stored; those of `train` as training needs them."""
        training = name == "train" and not evaluation
        if self.opened.whole is not None:
            return self.opened.whole.images.recipe_of("train", evaluation=not training)
        return (
            training_recipe(self._need(name), self.augment.layout, self._shape)
            if training
            else evaluation_recipe(self._shape)
        )

    def _leave_out(self, name: str, split: Split, bad: Sequence[tuple[int, str]]) -> None:
        files = [BadFile(split.files[position], reason) for position, reason in bad]
        examples = "; ".join(f"{file.path}: {file.reason}" for file in files[:3]) + ("; …" if files[3:] else "")
        found = f"{type(self).__name__}, {name}: {len(files):,} of {len(split):,} images cannot be read"
        if self.on_bad == "error":
            raise UserError(f"{found} ({examples}). Repair or remove them, or set data.on_bad=skip.")
        log.warning("%s and are left out: %s", found, examples)
        self.opened.source = map_names(self.source.without(files), self.cache)

    def _make_loader(self, name: str, plan: Plan, *, training: bool = False) -> Loader[RawBatch | Batch]:
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        if training and self.augment.per_image:
            self.store_of(name)  # which finds the images that cannot be read
            stream = stream_transformed(
                self._need(name),
                self.recipe_of(name),
                self.augment.per_image,
                seed=self.order_seed,
                workers=max(1, self.num_workers // self._processes_here()),
                pin=device.type == "cuda",
                weights=scaled_weights(self._need(name)),
            )
            return Loader(plan, stream=stream, finish=self._finish_without_trainer)
        store = on_device(self.store_of(name, evaluation=not training), self.store_kind, device)
        aspects = self.aspects_of(name) if training else None
        pin = device.type == "cuda"
        load = batches_of(store, self._need(name), pin=pin, seed=self.order_seed, aspects=aspects)
        in_turn = partial(store.batches, load) if isinstance(store, StreamedStore) else None
        return Loader(plan, load, finish=self._finish_without_trainer, stream=in_turn)

    def _finish_without_trainer(self, batch: RawBatch | Batch) -> RawBatch | Batch:
        """Finish batches in the loader if no trainer runs that calls the hook above, as in a notebook."""
        return batch if self._running() else self.on_after_batch_transfer(batch, 0)

    def normalise(self, images: Tensor) -> Tensor:
        """Values in 0..255 to float32, equal bit for bit to Preprocessing.normalise."""
        return normalise(images, self.preprocessing)
