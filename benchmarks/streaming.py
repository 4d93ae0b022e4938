"""Images per second of shards that are fetched in turn: imgcls against LitData and WebDataset, on the same images.

    python benchmarks/streaming.py IMAGES [--count 4000] [--repeats 3] [--engines NAME,NAME] [--json FILE]

IMAGES is a folder of photographs, from which `--count` JPEGs of 500 x 375 px are cut. Each engine reads them, in a
process of its own, from a folder that stands for the network, through a cache with room for half of them, in batches of
64, with one thread or in the process itself; `decoded` also decodes them to 256 px, imgcls as in a training, the others
with Pillow. The engines take turns, and the fastest of the repeats counts. Then, whether an epoch has each image once,
and whether one that is left in the middle resumes with the images that an uninterrupted one has. LitData and WebDataset
must be installed; they are no dependencies of imgcls. Prints a table, and a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from results import command_line, report

BATCH, SIDE, SHARD = 64, 256, 8 << 20
ENGINES = ("imgcls", "litdata", "webdataset")
Batches = Iterator[tuple[list[int], Any]]
"""The numbers of the images of each batch, and the images."""


def make_images(images: Path, count: int, folder: Path) -> None:
    """`count` JPEGs of 500 x 375 px in two classes, named by their numbers."""
    from PIL import Image

    originals = sorted(path for path in images.rglob("*.jpg"))
    for number in range(count):
        with Image.open(originals[number % len(originals)]) as opened:
            shift = 1 + number // len(originals) % 20
            box = (shift, shift, opened.width - shift, opened.height - shift)
            image = opened.convert("RGB").resize((500, 375), box=box)
        target = folder / f"class{number % 2}" / f"{number:06}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, quality=90)


def decode(content: bytes) -> Any:
    """The image as a model is trained with it: uint8 (256, 256, 3)."""
    import numpy as np
    from PIL import Image

    from imgcls.images.decoding import open_picture

    return np.asarray(open_picture(content).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


# ---- the engines: each writes the images in its format, and reads them


def write_imgcls(images: Path, folder: Path) -> None:
    from imgcls.data.imagefolder import ImageFolder
    from imgcls.data.sharding import writing

    writing.SHARD_BYTES = SHARD
    source = ImageFolder(images, image_size=SIDE, test_fraction=0.0, val_fraction=0.0).source
    writing.write_shards(source, folder, 1)


def read_imgcls(folder: Path, cache: Path, decoded: bool, workers: int, skip: int = 0) -> Batches:
    import torch

    from imgcls.data.shards import Shards
    from imgcls.data.stores.store import Recipe
    from imgcls.data.stores.streamed import StreamedStore

    disk = sum(file.stat().st_size for file in folder.glob("*.tar")) // 2
    options: dict[str, Any] = {
        "stream": True,
        "stream_disk": disk,
        "shuffle_shards": 2,
        "cache": cache,
        "val_fraction": 0,
    }
    data = Shards(folder, image_size=SIDE, batch_size=BATCH, **options)
    split = data.source.train
    store = StreamedStore(split, Recipe("squash", SIDE, SIDE, "bicubic"), workers)
    names = [int(name.rpartition("_")[2].removesuffix(".jpg")) for name in split.names]

    def load(positions: torch.Tensor, draws: torch.Tensor, epoch: int) -> Any:
        if decoded:
            return Loaded(positions, store.gather(positions))
        return Loaded(positions, [store.split.pictures[row] for row in positions.tolist()])

    for batch in store.batches(load, data.train_dataloader().plan.epoch(0)[skip:], 0):
        yield [names[row] for row in batch.index.tolist()], batch.images


class Loaded:
    """A batch."""

    def __init__(self, index: Any, images: Any) -> None:
        self.index, self.images = index, images


def write_webdataset(images: Path, folder: Path) -> None:
    write_imgcls(images, folder)


def read_webdataset(folder: Path, cache: Path, decoded: bool, workers: int, skip: int = 0) -> Batches:
    """Through its file cache, which has no limit by itself; resuming is reading on from the start."""
    import webdataset

    files = [f"file:{file}" for file in sorted(folder.glob("*.tar"))]
    data = webdataset.WebDataset(files, shardshuffle=100, seed=1, cache_dir=str(cache), empty_check=False)
    data = data.shuffle(1000, seed=1)
    samples = ((sample["__key__"], sample["jpg"]) for sample in data)
    yield from _in_batches(samples, decoded, skip)


def write_litdata(images: Path, folder: Path) -> None:
    import litdata

    files = [str(path) for path in sorted(images.rglob("*.jpg"))]
    litdata.optimize(
        _sample,
        files,
        str(folder),
        chunk_bytes=SHARD,
        num_workers=1,
        verbose=False,
        optimize_dns=False,
        start_method="fork",
    )


def _sample(file: str) -> dict[str, Any]:
    return {"key": Path(file).stem, "jpg": Path(file).read_bytes()}


def read_litdata(folder: Path, cache: Path, decoded: bool, workers: int, skip: int = 0) -> Batches:
    import litdata

    disk = sum(file.stat().st_size for file in folder.iterdir()) // 2
    data = litdata.StreamingDataset(f"local:{folder}", cache_dir=str(cache), shuffle=True, seed=1, max_cache_size=disk)
    loader = litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=0, collate_fn=list)
    if skip:
        before = iter(loader)
        for _ in range(skip):
            next(before)
        state = loader.state_dict()
        again = litdata.StreamingDataset(f"local:{folder}", cache_dir=str(cache), shuffle=True, seed=1)
        loader = litdata.StreamingDataLoader(again, batch_size=BATCH, num_workers=0, collate_fn=list)
        loader.load_state_dict(state)
    for batch in loader:
        images = [decode(sample["jpg"]) if decoded else sample["jpg"] for sample in batch]
        yield [int(sample["key"]) for sample in batch], images


def _in_batches(samples: Iterator[tuple[str, bytes]], decoded: bool, skip: int) -> Batches:
    keys, images, number = [], [], 0
    for key, content in samples:
        keys.append(int(key.rpartition("_")[2]))
        images.append(decode(content) if decoded else content)
        if len(keys) == BATCH:
            if number >= skip:
                yield keys, images
            keys, images, number = [], [], number + 1


WRITE: dict[str, Callable[[Path, Path], None]] = {
    "imgcls": write_imgcls,
    "litdata": write_litdata,
    "webdataset": write_webdataset,
}
READ: dict[str, Callable[..., Batches]] = {
    "imgcls": read_imgcls,
    "litdata": read_litdata,
    "webdataset": read_webdataset,
}


def read(engine: str, folder: Path, decoded: bool = False, skip: int = 0) -> Batches:
    """An epoch with an empty cache, without its first `skip` batches."""
    cache = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        yield from READ[engine](folder, cache, decoded, 1, skip)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def measure(engine: str, folder: Path) -> dict[str, Any]:
    """Speed of an engine whose data are in `folder`."""
    found: dict[str, Any] = {}
    for _ in read(engine, folder, decoded=True):  # once through all that is imported and prepared at its first use
        break
    for name, decoded in (("bytes", False), ("decoded", True)):
        began, cpu, count, first = time.perf_counter(), _cpu(), 0, 0.0
        for keys, _ in read(engine, folder, decoded):
            first = first or time.perf_counter() - began
            count += len(keys)
        found |= {
            f"{name} images/s": count / (time.perf_counter() - began),
            f"{name} images per CPU second": count / (_cpu() - cpu),
            f"{name} first batch, s": first,
        }
    return found


def check(engine: str, folder: Path) -> dict[str, Any]:
    """Whether an epoch has each image once, is the same again, and resumes."""
    order = [keys for keys, _ in read(engine, folder)]
    middle = len(order) // 2
    return {
        "each image once": len({key for keys in order for key in keys}) == sum(map(len, order)),
        "same order again": [keys for keys, _ in read(engine, folder)] == order,
        "resumes": [keys for keys, _ in read(engine, folder, skip=middle)] == order[middle:],
    }


TASKS = {"measure": measure, "check": check}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def run(task: str, engine: str, folder: Path) -> dict[str, Any]:
    """The result of a task in a process of its own; LitData's own caches are in `folder`, not in the system's."""
    caches = {f"DATA_OPTIMIZER_{name}CACHE_FOLDER": str(folder / "litdata-cache") for name in ("", "DATA_")}
    command = [sys.executable, __file__, str(folder), "--task", f"{task} {engine}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **caches})
    if done.returncode:
        sys.exit(f"{engine}: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task, engine = arguments.task.split()
        if task == "write":
            WRITE[engine](arguments.images / "images", arguments.images / engine)
            print("{}")
        else:
            print(json.dumps(TASKS[task](engine, arguments.images / engine)))
        return
    engines = arguments.engines.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_images(arguments.images, arguments.count, folder / "images")
        for engine in engines:
            run("write", engine, folder)
        results: dict[str, dict[str, Any]] = {engine: {} for engine in engines}
        for _ in range(arguments.repeats):
            for engine in engines:
                for name, value in run("measure", engine, folder).items():
                    best = min if name.endswith(", s") else max
                    results[engine][name] = round(best(value, results[engine].get(name, value)), 2)
        for engine in engines:
            results[engine] |= run("check", engine, folder)
    for name in results[engines[0]]:
        print(f"{name:32}", *(f"{results[engine][name]!s:>12}" for engine in engines))
    report({"images": arguments.count, "engines": results}, arguments.json)


if __name__ == "__main__":
    main()
