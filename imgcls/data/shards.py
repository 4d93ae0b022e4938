"""`data=shards`: images in tar files, as WebDataset's, read where they are: a few large files instead of millions.

Any member of an uncompressed tar can be read by its place, so that the images of shards are used like files: stored,
shuffled over the whole data set, and resumed to the same bits. Where they are far away and the disk has no room for
all, they are fetched in turn (see `imgcls.data.sharding.streams`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.folders import need_folder
from imgcls.data.imagefolder import USUAL_NAMES, ImageFolder, with_test
from imgcls.data.loader import ShardedPlan, TrainingPlan
from imgcls.data.names import NamesInShards
from imgcls.data.sharding.index import CLASS_NAMES, parse_labels
from imgcls.data.sharding.listing import ShardList, read_shards
from imgcls.data.sharding.members import MembersIn, StreamedMembers
from imgcls.data.sharding.origins import is_address, is_on_web, open_origin
from imgcls.data.sharding.parquet import as_tars, list_parquet
from imgcls.data.sharding.streams import Streams
from imgcls.data.sources import BadFile, Source, Split
from imgcls.data.stores.streamed import unreadable_images
from imgcls.data.table import sort_names
from imgcls.errors import UserError
from imgcls.system.checks import bytes_or_auto, check_value, choice, whole


class Shards(ImageFolder):
    """Images in tar files `train-….tar`, `val-….tar`, `test-….tar`, each with its class beside it; or in Parquet files.

    An image `KEY.jpg` has its class in `KEY.cls`, a number or a name, or several labels, a JSON list of these. Without
    a `.cls`, it is the value of `label`, or of another usual name of that column, in `KEY.json`. The names of numbered
    classes are the lines of `classnames.txt`, if there is such a file. Words in the paths of the shards say which split
    they are of; shards without such words are split like a single folder of images.

    Args:
        root: folder of the shards, or its address: s3://…, https://…, hf://datasets/….
        stream: fetch the shards when their turn comes: `auto` (those at an address, where the disk has no room for
            all), True (also from a folder: of a network, or of SageMaker's FastFile mode), False.
        stream_disk: bytes that fetched shards take at most, such as 20GB; `auto`: four fifths of the free disk.
        shuffle_shards: number of shards whose images are shuffled together, where they are fetched in turn.
        **options: of ImageFolder.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        stream: bool | str = "auto",
        stream_disk: str | int = "auto",
        shuffle_shards: int = 8,
        **options: object,
    ) -> None:
        super().__init__(None if is_on_web(root) else root, **options)  # type: ignore[arg-type]
        check_value("data.stream", stream, choice("auto", True, False))
        check_value("data.stream_disk", stream_disk, bytes_or_auto)
        check_value("data.shuffle_shards", shuffle_shards, whole(1))
        origin = open_origin(str(root)) if root is not None and (stream is True or is_address(root)) else None
        self.streams = Streams(origin, self.cache, stream, stream_disk) if origin is not None else None
        """Where shards at an address are fetched; None for a folder whose shards are read where they are."""
        self.shuffle_shards = shuffle_shards
        if self.streams is not None and self.root is None:
            self.root = self.streams.folder

    def prepare_data(self) -> None:
        """Fetch the index of the shards, and all of them unless they are fetched in turn."""
        if self.streams is None or not self.streams.prepare():
            super().prepare_data()

    def download(self) -> None:
        """Fetch the shards that are missing."""
        if self.streams is not None:
            self.streams.fetch_all(self.num_workers)

    def find(self) -> Source:
        """The images of the shards. Raises UserError for a shard that is damaged, or has no classes."""
        streams = self.streams if self.streams is not None and self.streams.active else None
        if streams is not None:
            self._check_streamed()
            root = folder = streams.index_folder
            listed = streams.images(self.num_workers)
        else:
            root = folder = need_folder(self.root, "shards")
            listed = read_shards(root, self.cache, self.num_workers)
            if not listed.shards and (files := list_parquet(root)):
                folder, held = as_tars(root, files, self.cache, self.num_workers)
                self.opened.held.append(held)
                listed = read_shards(folder, self.cache, self.num_workers)
        if not listed.shards:
            if streams is not None and list_parquet(root):
                raise UserError(f"{root} has Parquet files, which are not fetched in turn. Set data.stream=false.")
            raise UserError(f"{root} has no shards: data=shards reads files such as train-00000.tar.")
        if streams is not None:
            streams.open(listed, self.shuffle_shards)
        lists = [parse_labels(text) for text in listed.texts]
        several = any(labels is not None for labels in lists)
        labels_of = [[text] if labels is None else labels for text, labels in zip(listed.texts, lists, strict=True)]
        names, classes = _classes(root, {label for labels in labels_of for label in labels})
        if len(classes) < (1 if several else self.min_classes):
            raise UserError(f"{root} has {len(classes)} classes; at least {self.min_classes} are needed.")
        parts: dict[str, list[str]] = {}
        for name, shard in listed.shards.items():
            if shard.images:
                parts.setdefault(split_of(name), []).append(name)
        numbers = [[classes[label] for label in labels] for labels in labels_of]
        columns = len(names) if several else None
        found_splits = {name: _split(folder, listed, part, numbers, columns, streams) for name, part in parts.items()}
        splits = {name: split for name, (split, _) in found_splits.items()}
        bad = tuple(file for _, files in found_splits.values() for file in files)
        if "" in splits:
            if len(splits) > 1:
                raise UserError(f"{root / parts[''][0]}: call it train-….tar, val-….tar or test-….tar, as others are.")
            return with_test(Source(names, splits[""], bad=bad), self.test_fraction, self.seed, self.group)
        if "train" not in splits:
            raise UserError(f"{root} has no shards called train-….tar.")
        return Source(names, splits["train"], splits.get("val"), splits.get("test"), bad=bad)

    @property
    def bad_files(self) -> Sequence[BadFile]:
        """Those that the index says, and those that were found when they were decoded."""
        found = unreadable_images(self.streams.folder) if self.streams is not None and self.streams.active else []
        if not found:
            return self.source.bad
        asked = {str(file.path) for file in found}
        own = {name for split in self.source.splits().values() for name in split.names if name in asked}
        return [*self.source.bad, *(file for file in found if str(file.path) in own)]

    def _make_plan(self, labels: np.ndarray, batch_size: int, **options: Any) -> TrainingPlan:
        pictures = self._need("train").pictures
        if not isinstance(pictures, StreamedMembers):
            return super()._make_plan(labels, batch_size, **options)
        shards, together = pictures.places[:, 0], self.shuffle_shards
        return ShardedPlan(labels, batch_size, shards=shards, together=together, **options)

    def _check_streamed(self) -> None:
        """Raise UserError for options that need all images at once."""
        is_set = {
            "data.normalization=dataset": self.normalization == "dataset",
            "data.sampler=balanced": self.sampler == "balanced",
            "data.augment.per_image": bool(self.augment.per_image),
        }
        if wrong := [option for option, value in is_set.items() if value]:
            raise UserError(f"{wrong[0]} is not for shards that are fetched in turn. Leave it out, or copy them first.")


def split_of(shard: str) -> str:
    """The split that a word in the path of a shard names; '' if there is none."""
    words = re.split(r"[^a-z]+", shard.lower())
    return next((split for split, usual in USUAL_NAMES.items() if any(word in usual for word in words)), "")


def _classes(root: Path, labels: Iterable[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of the classes, and the number of each of the `labels`."""
    found = sort_names(labels)
    file = root / CLASS_NAMES
    if not file.is_file() or not all(label.isdecimal() for label in found):
        return found, {label: number for number, label in enumerate(found)}
    names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    if found and int(found[-1]) >= len(names):
        raise UserError(f"{file} has {len(names)} names, but there is a class {found[-1]}, counted from 0.")
    return names, {label: int(label) for label in found}


def _split(
    folder: Path,
    listed: ShardList,
    shards: Sequence[str],
    numbers: Sequence[Sequence[int]],
    columns: int | None,
    streams: Streams | None,
) -> tuple[Split, list[BadFile]]:
    """The images of a split, and those that are left out because their size is not known.

    Args:
        folder: of the shards.
        listed: all shards, and their images.
        shards: those of the split.
        numbers: of each text beside an image, the numbers of its classes.
        columns: the number of classes, if an image can have several.
        streams: see `Shards.streams`; None for shards that are read where they are.
    """
    rows = listed.rows(shards)
    numbered = np.repeat(np.arange(len(shards)), [listed.shards[name].images for name in shards])
    places = np.stack([numbered, listed.starts[rows], listed.sizes[rows]], axis=1)
    names = NamesInShards([name.removesuffix(".tar") for name in shards], places[:, 0], listed.names, rows)
    if columns is None:
        table = np.array([number for [number] in numbers], dtype=np.int64)
    else:
        table = np.zeros((len(numbers), columns), dtype=np.uint8)
        for row, chosen in enumerate(numbers):
            table[row, chosen] = 1
    labels = table[listed.labels[rows]]
    sizes = None
    if listed.widths is not None and listed.heights is not None:
        sizes = np.stack([listed.widths[rows], listed.heights[rows]], axis=1)
    if streams is None:
        return Split(names, labels, MembersIn(folder, names, shards, places, sizes)), []
    assert sizes is not None
    members = StreamedMembers(folder, names, shards, places, sizes, cache=streams.cache, keys=streams.keys(shards))
    split, unknown = Split(names, labels, members), sizes[:, 0] == 0
    bad = [BadFile(Path(names[row]), "not an image") for row in np.flatnonzero(unknown).tolist()]
    return split.subset(np.flatnonzero(~unknown)) if bad else split, bad
