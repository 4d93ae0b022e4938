"""`python -m imgcls.prepare data=…`: prepare a data set for training, and print what is in it.

usage: python -m imgcls.prepare data=NAME [data.option=value …] [duplicates=true|false] [audit=true] [output=FOLDER]
                                [shards=FOLDER]

Downloads what is missing, checks every image, builds the store of decoded pixels that training reads (give the same
options as to train), and prints a table: images per class and split, sizes, formats, files that cannot be used, and
images that are in two splits. `output=FOLDER` also writes bad_files.csv and duplicates.csv there.

`audit=true` also runs the pretrained backbone of `model.…` on all images, and lists labels that are probably wrong,
copies within a split, poor images, and classes that may be two; and the causes of the errors of a linear head, with
what correcting them is worth. `output=FOLDER` then has audit.csv, which data=table reads. See docs/audit.md.

`shards=FOLDER` also writes the usable images as tar files of 256 MB, which data=shards and WebDataset read; with
data.store=none nothing else is kept. What a killed command has completed stays.

Several processes, started by torchrun on machines that share the images and the cache ($IMGCLS_CACHE), check and
decode a part of the images each; the first one prints the table.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgcls.cli import Option, announce, boolean, read_options, run_command
from imgcls.errors import UserError
from imgcls.system.checks import flag
from imgcls.system.files import atomic_write_text
from imgcls.system.machine import local_processes
from imgcls.system.positions import spread_positions
from imgcls.system.shares import Share
from imgcls.system.text import printable

if TYPE_CHECKING:
    from imgcls.data.duplicates import Duplicate
    from imgcls.data.module import ImageDataModule
    from imgcls.data.sources import BadFile

OPTIONS = {
    "duplicates": Option(True, flag, boolean),
    "audit": Option(False, flag, boolean),
    "output": Option(),
    "shards": Option(),
}
OVERRIDES = ("data", "task", "model", "augment", "seed", "experiment", "trainer")
MAX_FILES = 10  # of each kind in the printed table
SAMPLED_IMAGES = 1000  # for mean and std where no pixels are stored


@dataclass(frozen=True, eq=False)
class Preparation:
    """A data set that is ready for training, and what was found in it."""

    class_names: tuple[str, ...]
    counts: dict[str, np.ndarray]
    """Split to int64 (C,): usable images of each class."""
    sizes: np.ndarray
    """int64 (N, 2): width and height of all usable images, px."""
    formats: dict[str, int]
    """Images per format, by content; the most frequent first."""
    bad: tuple[BadFile, ...]
    mislabelled: list[tuple[Path, str]]
    """Files with the extension of another format; they are used nevertheless."""
    duplicates: list[Duplicate] | None
    """None where they were not searched for."""
    mean: tuple[float, ...]
    """Of the training pixels' channels, such as red, green and blue, in 0..1."""
    std: tuple[float, ...]
    stores: dict[str, Path | None]
    """Split to the folder of its decoded pixels; None where they are held in memory, or not stored."""
    notes: tuple[str, ...] = ()

    @property
    def pictures(self) -> int:
        """Number of usable images in all splits."""
        return int(sum(counts.sum() for counts in self.counts.values()))


def prepare(datamodule: ImageDataModule, *, duplicates: bool = True) -> Preparation:
    """Download, check, count and decode the data set of `datamodule`, which is then set up for all stages.

    Raises UserError where the images are not as expected, and for bad files where `on_bad` is 'error'.
    """
    from imgcls.data.checks import BadFile, find_mislabelled, inspect
    from imgcls.data.duplicates import find_duplicates
    from imgcls.data.stores.statistics import channel_statistics
    from imgcls.data.stores.store import DecodingStore, part_of_store

    datamodule.prepare_data()
    source = datamodule.source
    decode_and_inspect(datamodule)
    findings = {
        name: inspect(split.pictures, datamodule.cache, datamodule.num_workers, datamodule.depth)
        for name, split in source.splits().items()
    }
    bad = [
        *source.bad,
        *(
            BadFile(file, reason)
            for name, split in source.splits().items()
            for file, reason in zip(split.files, findings[name].reasons, strict=bool(split.files))
            if reason
        ),
    ]
    wrong_endings = [
        pair
        for name, split in source.splits().items()
        if split.files
        for pair in find_mislabelled(split.files, findings[name])
    ]
    usable = source.without(bad[len(source.bad) :])
    store = datamodule.store_of("train")
    if isinstance(store, DecodingStore) and len(store) > SAMPLED_IMAGES:
        store = part_of_store(store, spread_positions(len(store), SAMPLED_IMAGES))
    mean, std = channel_statistics(store)
    good = [np.array([not reason for reason in found.reasons], dtype=bool) for found in findings.values()]
    formats = Counter(kind for found in findings.values() for kind in found.formats if kind)
    return Preparation(
        class_names=source.class_names,
        counts={name: split.class_counts(len(source.class_names)) for name, split in usable.splits().items()},
        sizes=np.concatenate([found.sizes[ok] for found, ok in zip(findings.values(), good, strict=True)]),
        formats=dict(formats.most_common()),
        bad=tuple(bad),
        mislabelled=wrong_endings,
        duplicates=find_duplicates(source, findings, datamodule.cache, datamodule.num_workers) if duplicates else None,
        mean=tuple(mean),
        std=tuple(std),
        stores={name: datamodule.store_of(name).folder for name in usable.splits()},
        notes=source.notes,
    )


def decode_and_inspect(datamodule: ImageDataModule) -> None:
    """Open all stores; what is found in images that must be decoded for them is added to the cache of `checks`."""
    from imgcls.data.checks import InspectedSplit

    source = datamodule.source
    if not getattr(source.train.pictures, "on_disk", True):
        raise UserError(
            "These shards are fetched in turn while they are used: there is nothing to prepare. With data.stream=false "
            "they are copied to the cache and prepared."
        )
    inspected = {
        name: InspectedSplit.of(split, datamodule.cache, datamodule.depth)
        for name, split in source.splits().items()
        if split.files
    }
    datamodule.opened.source = replace(source, **inspected)  # type: ignore[arg-type]
    try:
        datamodule.setup()
    finally:
        for split in inspected.values():
            split.save()


def take_share(datamodule: ImageDataModule, share: Share) -> None:
    """Check and decode a part of the images, and wait until all processes of torchrun have done theirs."""
    from datetime import timedelta

    from torch.distributed import barrier, destroy_process_group, init_process_group

    from imgcls.data.checks import inspect

    if "MASTER_ADDR" not in os.environ:
        raise UserError(f"{share.count} processes prepare a data set together if torchrun starts them.")
    workers = max(1, datamodule.num_workers // local_processes())

    def inspect_share() -> None:
        for split in datamodule.source.splits().values():
            if split.files:
                inspect(split.files, datamodule.cache, workers, datamodule.depth, share)
        barrier()

    init_process_group("gloo", timeout=timedelta(days=7))
    try:
        if os.environ.get("LOCAL_RANK") == "0":
            datamodule.prepare_data()
        barrier()
        if datamodule.store_kind == "none":
            inspect_share()
        decode_and_inspect(datamodule)
        barrier()
        inspect_share()  # of stores that existed
    finally:
        destroy_process_group()


def table(preparation: Preparation) -> str:
    """`preparation` as text for a terminal."""
    return printable("\n".join([*_counts(preparation), "", *_properties(preparation), *_lists(preparation)]))


def _counts(preparation: Preparation) -> Iterator[str]:
    names = [*preparation.class_names, f"all {len(preparation.class_names)} classes"]
    width = max(map(len, names))
    columns = [np.append(counts, counts.sum()) for counts in preparation.counts.values()]
    yield f"{'class':{width}}" + "".join(f"{name:>9}" for name in preparation.counts)
    for row, name in enumerate(names):
        yield f"{name:{width}}" + "".join(f"{column[row]:>9,}" for column in columns)


def _properties(preparation: Preparation) -> Iterator[str]:
    yield f"sizes       {_sizes(preparation.sizes)}"
    if preparation.formats:
        yield f"formats     {', '.join(f'{kind} {count:,}' for kind, count in preparation.formats.items())}"
    yield f"mean        {' '.join(f'{value:.4f}' for value in preparation.mean)}    (training pixels, by channel)"
    yield f"std         {' '.join(f'{value:.4f}' for value in preparation.std)}"
    folders = {str(folder) for folder in preparation.stores.values() if folder is not None}
    for title, folder in zip(["decoded in", *[""] * len(folders)], sorted(folders), strict=False):
        yield f"{title:11} {folder}"
    for note in preparation.notes:
        yield f"note        {note}"


def _lists(preparation: Preparation) -> Iterator[str]:
    yield f"bad files   {len(preparation.bad):,}{', left out:' if preparation.bad else ''}"
    yield from _some(f"{file.path}: {file.reason}" for file in preparation.bad)
    if preparation.mislabelled:
        yield f"endings     {len(preparation.mislabelled):,} files have the extension of another format:"
        yield from _some(f"{file}: {kind}" for file, kind in preparation.mislabelled)
    if preparation.duplicates is not None:
        yield f"duplicates  {_duplicates(preparation.duplicates)}"
        yield from _some(
            f"{pair.split} {pair.name} = {pair.other_split} {pair.other_name}"
            f" ({pair.kind}{'' if pair.same_class else ', another class'})"
            for pair in sorted(preparation.duplicates, key=lambda pair: (pair.same_class, pair.kind))
        )


def _duplicates(found: Sequence[Duplicate]) -> str:
    if not found:
        return "no image is in two splits"
    kinds = Counter((pair.kind, pair.split, pair.other_split) for pair in found)
    return ", ".join(f"{count:,} {kind} in {split} and {other}" for (kind, split, other), count in kinds.items()) + ":"


def _sizes(sizes: np.ndarray) -> str:
    distinct = np.unique(sizes, axis=0)
    if len(distinct) == 1:
        return f"{distinct[0, 0]}x{distinct[0, 1]} px"
    (smallest_width, smallest_height), (width, height) = sizes.min(axis=0), sizes.max(axis=0)
    middle_width, middle_height = np.median(sizes, axis=0).astype(int)
    return f"{smallest_width}–{width} x {smallest_height}–{height} px, median {middle_width} x {middle_height}"


def _some(lines: Iterable[str]) -> Iterator[str]:
    texts = list(lines)
    yield from (f"  {text}" for text in texts[:MAX_FILES])
    if texts[MAX_FILES:]:
        yield f"  … and {len(texts) - MAX_FILES:,} more"


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


def _command(arguments: Sequence[str]) -> None:
    options, overrides, _ = read_options(arguments, OPTIONS, usage=__doc__ or "", overrides=OVERRIDES)
    announce("reading the configuration, then loading PyTorch")
    from imgcls.config.composition import compose

    cfg: Any = compose(overrides)
    folder = Path(options["output"]).expanduser() if options["output"] else None
    images = _open(cfg)
    share = Share.of_this_process()
    if share.count > 1:
        take_share(images, share)
    preparation = None if share.rank else prepare(images, duplicates=options["duplicates"])
    if options["shards"]:
        from imgcls.data.sharding.writing import write_shards

        write_shards(images.source, Path(options["shards"]).expanduser(), images.num_workers, share)
    if preparation is None:
        return
    print(table(preparation))
    if folder is not None:
        from imgcls.data.checks import bad_as_csv
        from imgcls.data.duplicates import Duplicate
        from imgcls.system.tables import as_csv

        atomic_write_text(folder / "bad_files.csv", bad_as_csv(preparation.bad))
        duplicates = [pair._asdict() for pair in preparation.duplicates or []]
        atomic_write_text(folder / "duplicates.csv", as_csv(duplicates, Duplicate._fields))
    if options["audit"]:
        _audit(cfg, images, folder)


def _open(cfg: Any) -> ImageDataModule:
    from hydra.utils import instantiate

    from imgcls.training.build import pretrained_statistics

    statistics = pretrained_statistics(cfg.model.name)
    images: ImageDataModule = instantiate(cfg.data, _convert_="all", pretrained_statistics=statistics)
    return images


def _audit(cfg: Any, images: ImageDataModule, folder: Path | None) -> None:
    """Audit `images` by the pretrained backbone of `cfg`, print what is found, and write it to `folder`."""
    from imgcls.audit.tables import as_text
    from imgcls.training.auditing import audit_images, write_audit
    from imgcls.training.build import build_network
    from imgcls.training.devices import choose_devices

    devices = choose_devices(cfg.trainer.accelerator, 1)
    found = audit_images(images, build_network(cfg, images), devices.torch_device())
    print(f"\n{as_text(found)}")
    if folder is not None:
        print(f"table       {write_audit(found, folder, images)}")


if __name__ == "__main__":
    main()
