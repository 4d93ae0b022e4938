"""The index of a shard: what is in it and where, from a pass over its headers, kept beside it or in the cache."""

from __future__ import annotations

import hashlib
import json
import tarfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from imgcls.data.table import USUAL_COLUMNS
from imgcls.errors import UserError, first_line
from imgcls.images.decoding import BadPicture, read_size
from imgcls.images.paths import file_state
from imgcls.images.signatures import PICTURE_SUFFIXES
from imgcls.system.files import atomic_write_text

CLASS_NAMES = "classnames.txt"
INDEX_SUFFIX = ".index.json"  # beside a shard, after its name
MAX_LABEL_BYTES = 100_000


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
    """What is said beside each image: a number, or the name of a class; where it has several, a JSON list of them."""
    key: str = ""
    """What the shard was written from; '' where it is not known."""
    sha256: str = ""
    """Of the shard; '' where it is not known."""
    widths: list[int] = field(default_factory=list)
    """Of the images, px, upright; 0 where the header cannot be read. Empty where nobody has looked."""
    heights: list[int] = field(default_factory=list)
    """As the widths."""

    @property
    def measured(self) -> bool:
        """Whether it has the sizes of the images."""
        return len(self.widths) == len(self.names)


def list_shards(root: Path) -> list[str]:
    """The paths of the shards below `root`, sorted."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar"))


def read_index(shard: Path, cache: Path, *, measured: bool = False) -> Index:
    """The index of a shard: from the file beside it, or from the cache, or from the shard.

    Where it must be `measured`, the header of each image is read as well, if that has not been done.
    """
    state = file_state(shard)
    key = hashlib.blake2b(f"{shard.resolve()}\0{state}".encode("utf-8", "surrogateescape"), digest_size=16)
    kept = cache / "shards" / f"{key.hexdigest()}.json"
    for file in (shard.with_name(shard.name + INDEX_SUFFIX), kept):
        with suppress(OSError, ValueError, TypeError):
            index = load_index(file)
            if index.bytes == state[0] and (index.measured or not measured):
                return index
    index = _scan(shard, measured)
    with suppress(OSError, UserError):  # without a cache the next start takes longer
        atomic_write_text(kept, json.dumps(asdict(index)))
    return index


def load_index(file: Path) -> Index:
    """The index in a file. Raises OSError, ValueError, TypeError."""
    return Index(**json.loads(file.read_text(encoding="utf-8")))


def parse_labels(text: str) -> list[str] | None:
    """The labels of an image that can have several, of what is said beside it; None if that is one class.

    >>> parse_labels('["cat", "sofa"]'), parse_labels("[2, 0]"), parse_labels("cat")
    (['cat', 'sofa'], ['2', '0'], None)
    """
    if text.startswith("["):
        with suppress(ValueError):
            return [str(label) for label in json.loads(text)]
    return None


def _label_in_json(content: bytes) -> str:
    """What a `.json` says of the labels, as a `.cls` does; '' if it has none of the usual names."""
    with suppress(ValueError):
        found = json.loads(content)
        named = [found[name] for name in USUAL_COLUMNS["label"] if name in found] if isinstance(found, dict) else []
        if named and named[0] is not None:
            return json.dumps(named[0]) if isinstance(named[0], list) else str(named[0])
    return ""


def _scan(shard: Path, measured: bool) -> Index:
    index, labels, keys = Index(shard.stat().st_size, [], [], [], []), dict[str, str](), list[str]()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                key, dot, suffix = name.partition(".")
                key = folder + slash + key
                if not member.isreg() or not dot:
                    continue
                if suffix.lower() in ("cls", "json") and member.size <= MAX_LABEL_BYTES:
                    opened = tar.extractfile(member)
                    content = opened.read() if opened is not None else b""
                    if suffix.lower() == "cls":
                        labels[key] = content.decode().strip()
                    elif not labels.get(key):
                        labels[key] = _label_in_json(content)
                elif Path(name).suffix.lower() in PICTURE_SUFFIXES:
                    keys.append(key)
                    index.names.append(member.name)
                    index.starts.append(member.offset_data)
                    index.sizes.append(member.size)
                    if measured:
                        _measure(tar, member, index)
    except (tarfile.TarError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"{shard} is no complete, uncompressed tar file: {first_line(error)}.") from error
    missing = [name for name, key in zip(index.names, keys, strict=True) if not labels.get(key)]
    if missing:
        raise UserError(f"{shard}: {missing[0]} has no class: data=shards needs KEY.cls beside KEY.jpg.")
    index.labels.extend(labels[key] for key in keys)
    return index


def _measure(tar: tarfile.TarFile, member: tarfile.TarInfo, index: Index) -> None:
    content, width, height = tar.extractfile(member), 0, 0
    with suppress(BadPicture):
        if content is not None:
            width, height = read_size(content)
    index.widths.append(width)
    index.heights.append(height)
