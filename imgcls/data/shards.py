"""`data=shards`: images in tar files, as WebDataset's, read where they are: a few large files instead of millions.

Any member of an uncompressed tar can be read by its place, so that the images of shards are used like files: stored,
shuffled over the whole data set, and resumed to the same bits. A pass over the headers of each shard finds them once;
the index is kept in the cache, or beside the shard by `imgcls.prepare shards=DIR`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from imgcls.data.folders import need_folder
from imgcls.data.imagefolder import USUAL_NAMES, ImageFolder, with_test
from imgcls.data.sources import FilesIn, Source, Split, picture_name
from imgcls.data.stores.fingerprint import file_state
from imgcls.data.table import sort_names
from imgcls.data.threads import map_with_bar
from imgcls.errors import UserError, first_line
from imgcls.pictures import PICTURE_SUFFIXES, member_path
from imgcls.system.files import atomic_write_text

CLASS_NAMES = "classnames.txt"
INDEX_SUFFIX = ".index.json"  # beside a shard, after its name
MAX_LABEL_BYTES = 1000


@dataclass(frozen=True)
class Index:
    """The images in a shard, in their order."""

    bytes: int
    """Size of the shard."""
    names: list[str]
    """Paths in the shard."""
    starts: list[int]
    """Where their contents begin, bytes from the start of the shard."""
    sizes: list[int]
    """Bytes of their contents."""
    labels: list[str]
    """What the `.cls` beside each image says: a number, or the name of a class."""
    key: str = ""
    """What the shard was written from; '' where it is not known."""


class Shards(ImageFolder):
    """Images in tar files `train-….tar`, `val-….tar`, `test-….tar`, each with its class beside it.

    An image `KEY.jpg` has its class in `KEY.cls`, a number or a name; the names of numbered classes are the lines of
    `classnames.txt`, if there is such a file. Words in the paths of the shards say which split they are of; shards
    without such words are split like a single folder of images.

    Args:
        root: folder of the shards.
        **options: of ImageFolder.
    """

    def find(self) -> Source:
        """The images of the shards below `root`. Raises UserError for a shard that is damaged, or has no classes."""
        root = need_folder(self.root, "shards")
        shards = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar"))
        if not shards:
            raise UserError(f"{root} has no shards: data=shards reads files such as train-00000.tar.")

        def index(number: int) -> Index:
            return read_index(root / shards[number], self.cache)

        indices = list(map_with_bar(index, range(len(shards)), self.num_workers, "Indexing shards"))
        names, classes = _classes(root, indices)
        if len(classes) < self.min_classes:
            raise UserError(f"{root} has {len(classes)} classes; at least {self.min_classes} are needed.")
        parts: dict[str, list[tuple[str, Index]]] = {}
        for shard, found in zip(shards, indices, strict=True):
            parts.setdefault(split_of(shard), []).append((shard, found))
        splits = {split: _split(root, part, classes) for split, part in parts.items()}
        if "" in splits:
            if len(splits) > 1:
                raise UserError(
                    f"{root / parts[''][0][0]}: call it train-….tar, val-….tar or test-….tar, as others are."
                )
            return with_test(Source(names, splits[""]), self.test_fraction, self.seed, self.group)
        if "train" not in splits:
            raise UserError(f"{root} has no shards called train-….tar.")
        return Source(names, splits["train"], splits.get("val"), splits.get("test"))


def split_of(shard: str) -> str:
    """The split that a word in the path of a shard names; '' if there is none."""
    words = re.split(r"[^a-z]+", shard.lower())
    return next((split for split, usual in USUAL_NAMES.items() if any(word in usual for word in words)), "")


def read_index(shard: Path, cache: Path) -> Index:
    """The index of a shard: from the file beside it, or from the cache, or from the shard."""
    state = file_state(shard)
    key = hashlib.blake2b(f"{shard.resolve()}\0{state}".encode("utf-8", "surrogateescape"), digest_size=16)
    kept = cache / "shards" / f"{key.hexdigest()}.json"
    for file in (shard.with_name(shard.name + INDEX_SUFFIX), kept):
        with suppress(OSError, ValueError, TypeError):
            index = Index(**json.loads(file.read_text(encoding="utf-8")))
            if index.bytes == state[0]:
                return index
    index = _scan(shard)
    with suppress(OSError, UserError):  # without a cache the next start takes longer
        atomic_write_text(kept, json.dumps(asdict(index)))
    return index


def _scan(shard: Path) -> Index:
    index, labels, keys = Index(shard.stat().st_size, [], [], [], []), dict[str, str](), list[str]()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                key, dot, suffix = name.partition(".")
                key = folder + slash + key
                if not member.isreg() or not dot:
                    continue
                if suffix.lower() == "cls" and member.size <= MAX_LABEL_BYTES:
                    content = tar.extractfile(member)
                    labels[key] = content.read().decode().strip() if content is not None else ""
                elif Path(name).suffix.lower() in PICTURE_SUFFIXES:
                    keys.append(key)
                    index.names.append(member.name)
                    index.starts.append(member.offset_data)
                    index.sizes.append(member.size)
    except (tarfile.TarError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"{shard} is no complete, uncompressed tar file: {first_line(error)}.") from error
    missing = [name for name, key in zip(index.names, keys, strict=True) if not labels.get(key)]
    if missing:
        raise UserError(f"{shard}: {missing[0]} has no class: data=shards needs KEY.cls beside KEY.jpg.")
    index.labels.extend(labels[key] for key in keys)
    return index


def _classes(root: Path, indices: Sequence[Index]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of the classes, and the number of each label."""
    found = sort_names({label for index in indices for label in index.labels})
    file = root / CLASS_NAMES
    if not file.is_file() or not all(label.isdecimal() for label in found):
        return found, {label: number for number, label in enumerate(found)}
    names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    if found and int(found[-1]) >= len(names):
        raise UserError(f"{file} has {len(names)} names, but there is a class {found[-1]}, counted from 0.")
    return names, {label: int(label) for label in found}


class MembersIn(FilesIn):
    """Files in shards; the path of each is made when it is used.

    Args:
        folder: of the shards.
        names: of the files.
        shards: paths of the shards from `folder`.
        places: int64 (N, 3): the number of each file's shard, where its content begins, and its bytes.
    """

    def __init__(self, folder: str | Path, names: Sequence[str], shards: Sequence[str], places: np.ndarray) -> None:
        super().__init__(folder, names)
        self.shards, self.places = shards, places

    def _path(self, index: int) -> Path:
        shard, start, size = self.places[index].tolist()
        return Path(self.folder, member_path(self.shards[shard], start, size, self.names[index]))

    def at(self, indices: Iterable[int]) -> MembersIn:
        """The files at `indices`, in that order."""
        chosen = list(indices)
        return MembersIn(self.folder, [self.names[index] for index in chosen], self.shards, self.places[chosen])


def _split(root: Path, parts: Sequence[tuple[str, Index]], classes: dict[str, int]) -> Split:
    shards = [shard for shard, _ in parts]
    names = tuple(
        picture_name(f"{shard.removesuffix('.tar')}/{name}") for shard, index in parts for name in index.names
    )
    columns = [[np.full(len(index.names), shard), index.starts, index.sizes] for shard, (_, index) in enumerate(parts)]
    places = np.concatenate([np.array(column, dtype=np.int64).T for column in columns])
    labels = [classes[label] for _, index in parts for label in index.labels]
    return Split(names, np.array(labels, dtype=np.int64), MembersIn(root, names, shards, places))
