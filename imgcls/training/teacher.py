"""Distillation: the answers of a teacher for the training images, computed once and stored like features.

The teacher sees the view that the student sees, at its own size and with its own preprocessing: both are cut from the
image by the same random numbers (Beyer et al. 2022).
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from imgcls import portable
from imgcls.data.augment import Augment
from imgcls.data.folders import pictures_in
from imgcls.data.module import ImageDataModule, Opened
from imgcls.data.sources import FilesIn, Source, Split
from imgcls.data.stores.features import FeatureStore, build_features
from imgcls.data.teaching import Teacher
from imgcls.errors import UserError
from imgcls.images.preprocessing import Preprocessing
from imgcls.portable.description import DESCRIPTION, WEIGHTS, read_description, temperature_of
from imgcls.training.devices import Devices
from imgcls.training.frozen_backbone import outputs_key, run_once
from imgcls.training.own_parts import with_code

log = logging.getLogger(__name__)

PREFIX = "unlabeled/"
"""Begins the names of images without labels."""


def add_teacher(cfg: DictConfig, images: ImageDataModule, devices: Devices) -> None:
    """Give `images` the teacher of `loss.teacher`, and the images without labels of `data.unlabeled`; or do nothing.

    Raises UserError if the teacher is no model, or its classes are not those of `images`.
    """
    if cfg.loss.get("teacher") is None:
        return
    device = devices.torch_device(int(os.environ.get("LOCAL_RANK", "0")))
    model = _Model.open(cfg.loss.teacher, images, device)
    if images.unlabeled is not None:
        _add_unlabelled(images, model, Path(images.unlabeled).expanduser())
    views = cfg.loss.teacher_views if images.augment.changes or images.augment.per_image else 0
    if cfg.trainer.max_epochs > 0:
        views = min(views, cfg.trainer.max_epochs)  # no epoch would use the others
    seen = model.sees(images)
    seen.augment = copy.copy(images.augment)
    seen.augment.mixing = None  # answers are mixed like labels, batch by batch
    logits = model.answers(seen, views, with_code(cfg.data.augment))
    names = images.source.train.names
    images.teacher = Teacher(
        logits,
        views,
        cfg.loss.teacher_temperature,
        torch.tensor([name.startswith(PREFIX) for name in names]),
        model.key,
    )
    log.info(
        "%s teaches %s images, in %s, with a share of %g at temperature %g.",
        cfg.loss.teacher,
        f"{len(names):,}",
        f"{views} views" if views else "one view",
        cfg.loss.teacher_share,
        cfg.loss.teacher_temperature,
    )


def model_folder(path: str | Path) -> Path:
    """The portable model that `path` is, or that is in this run folder. Raises UserError if there is none."""
    folder = Path(path).expanduser()
    for place in (folder, folder / "model"):
        if (place / DESCRIPTION).is_file():
            return place
    raise UserError(f"loss.teacher={path}: this is neither a finished run nor a portable model (no {DESCRIPTION}).")


@dataclass
class _Model:
    """The portable model of a teacher.

    Attributes:
        folder: where it is.
        preprocessing: its own.
        order: int64 (C,), the places of the data set's classes among its logits.
        temperature: of its calibration.
        key: a hash of its weights, architecture and temperature.
        device: where it runs.
    """

    folder: Path
    preprocessing: Preprocessing
    order: Tensor
    temperature: float
    key: str
    device: torch.device

    @classmethod
    def open(cls, path: str, images: ImageDataModule, device: torch.device) -> _Model:
        """Read the description, and hash the weights, which are loaded when they are needed."""
        folder = model_folder(path)
        description = read_description(folder)
        if description["thresholds"] is not None or images.multilabel:
            raise UserError(f"loss.teacher={path}: teaching is for models and images of one class each.")
        content = hashlib.blake2b((folder / WEIGHTS).read_bytes(), digest_size=16)
        content.update(repr([sorted(description["architecture"].items()), temperature_of(description)]).encode())
        return cls(
            folder,
            Preprocessing.from_dict(description["preprocessing"]),
            _order(path, description["class_names"], images.class_names),
            temperature_of(description),
            content.hexdigest(),
            device,
        )

    def sees(self, images: ImageDataModule, source: Source | None = None) -> ImageDataModule:
        """`images`, or those of `source`, as this model sees them."""
        seen, own = copy.copy(images), self.preprocessing
        seen.opened = Opened(source or images.source)
        seen.image_size, seen.resize, seen.interpolation = own.image_size, own.resize, own.interpolation
        seen.fit, seen.pad_colour, seen.normalization = own.fit, own.pad_colour, (own.mean, own.std)
        seen.depth = own.depth
        seen.teacher = None
        return seen

    def answers(self, seen: ImageDataModule, views: int, augmentation: Any = None) -> FeatureStore:
        """The logits for the training images of `seen`, (max(V, 1), N, C), divided by the model's temperature.

        Args:
            seen: as the model sees them, see `sees`.
            views: number of augmented views, V; 0: the images as they are.
            augmentation: plain values that define the augmentation.
        """
        count = len(seen.source.train)
        shape = (max(views, 1), count, len(self.order))
        key = outputs_key(seen, "train", f"{self.key} {self.order.tolist()} {views}", augmentation if views else None)

        def compute() -> Iterator[np.ndarray]:
            log.info("The teacher sees %s images%s once.", f"{count:,}", f" in {views} views" if views else "")
            network = portable.load(self.folder).network

            def output(batch: Tensor) -> Tensor:
                return network(batch).float()[:, self.order.to(batch.device)] / self.temperature

            epochs: Sequence[int | None] = list(range(views)) if views else [None]
            yield from run_once(seen, network, "train", epochs, self.device, output, "Answers for")

        return build_features(seen.cache / "features" / key, shape, compute)


def _order(path: str, theirs: Sequence[str], ours: Sequence[str]) -> Tensor:
    """int64 (C,): the place of each of our classes among theirs. Raises UserError if they are not the same."""
    missing = [name for name in ours if name not in theirs]
    further = [name for name in theirs if name not in ours]
    if missing or further:
        parts = [
            f"{kind} {', '.join(map(repr, names[:3]))}{f' and {len(names) - 3} more' if names[3:] else ''}"
            for kind, names in (("it lacks", missing), ("it also has", further))
            if names
        ]
        raise UserError(f"loss.teacher={path}: its classes are not those of the images: {'; '.join(parts)}.")
    places = {name: place for place, name in enumerate(theirs)}
    return torch.tensor([places[name] for name in ours])


def _add_unlabelled(images: ImageDataModule, model: _Model, folder: Path) -> None:
    """Add the images in `folder` to the training images, as the class that the model takes them for.

    Only counts of classes and the solved head use that class: in the loss the teacher's answer takes its place.
    """
    names = pictures_in(folder)
    train = images.source.train
    if not names:
        raise UserError(f"data.unlabeled={folder}: there are no images in this folder.")
    if isinstance(train.pictures, np.ndarray):
        raise UserError(f"data.unlabeled needs a data set of image files; {type(images).__name__} has arrays.")
    found = Split(
        tuple(f"{PREFIX}{name}" for name in names), np.zeros(len(names), np.int64), FilesIn(folder.resolve(), names)
    )
    seen = model.sees(images, Source(images.class_names, found))
    seen.augment, seen.on_bad = Augment(), "skip"
    seen.store_of("train", evaluation=True)  # which leaves out what cannot be read
    source = images.source
    found = seen.source.train
    logits = model.answers(seen, 0).features[0]
    found = replace(found, labels=np.asarray(logits).argmax(axis=1))
    joined = Split.joined([train, found])
    if train.weights is not None:
        joined = replace(joined, weights=np.append(train.weights, np.full(len(found), train.weights.mean())))
    note = f"{len(found):,} images without labels are added from {folder}."
    stores = {place: store for place, store in images.opened.stores.items() if place[0] != "train"}
    bad = (*source.bad, *seen.source.bad)
    images.opened = Opened(replace(source, train=joined, bad=bad, notes=(*source.notes, note)), stores)
    images.store_of("train")
