"""Real images to test an endpoint with: from a folder, the run's test set, or the run's report."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imgcls.data.folders import pictures_in
from imgcls.errors import UserError
from imgcls.images.signatures import PICTURE_SUFFIXES, has_picture_signature
from imgcls.runs.provenance import read_configuration
from imgcls.runs.reading import read_predictions


@dataclass(frozen=True)
class Sample:
    """An image: its name and the content of its file."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Samples:
    """The images that test an endpoint.

    Attributes:
        origin: where they come from, for messages.
        too_large: how many candidates exceed the limit of a request.
        total: number of candidates.
    """

    pictures: tuple[Sample, ...]
    origin: str
    too_large: int = 0
    total: int = 0


def find_samples(run: Path, pictures: str | None, most: int, limit: int) -> Samples:
    """Up to `most` images of up to `limit` bytes, from the folder `pictures` or, if it is None, from the run.

    Raises UserError if there are none.
    """
    if pictures is not None:
        folder = Path(pictures).expanduser()
        files = [folder / name for name in pictures_in(folder)] if folder.is_dir() else []
        found = _read([file for file in files if file.is_file()], folder, str(folder), most, limit)
        if not found.total:
            raise UserError(f"pictures={pictures}: there are no images in this folder.")
    else:
        found = _test_images(run, most, limit)
        if not found.pictures:
            found = _report_images(run, most, found)
    if not found.pictures:
        if found.total:
            raise UserError(f"All {found.total} images in {found.origin} are larger than {limit >> 20} MB.")
        raise UserError(f"{run} has no images to test the endpoint with. Give pictures=FOLDER, or test=false.")
    return found


def _test_images(run: Path, most: int, limit: int) -> Samples:
    """From the test images listed in `predictions.csv`, if the data set is an existing local folder.

    The run may be somebody else's: only images are read, by their names and first bytes, and only below the folder.
    """
    config = read_configuration(run) if (run / "config.yaml").is_file() else {}
    address, predictions = (config.get("data") or {}).get("root"), read_predictions(run)
    root = Path(str(address)).expanduser() if address is not None and "://" not in str(address) else None
    if root is None or not predictions:
        return Samples((), "")
    names = [Path(row["file"]) for row in predictions]
    below = [root / name for name in names if not name.is_absolute() and ".." not in name.parts]
    files = [file for file in below if file.suffix.lower() in PICTURE_SUFFIXES and has_picture_signature(file)]
    return _read(files, root, f"the test set in {root}", most, limit)


def _read(files: Sequence[Path], root: Path, origin: str, most: int, limit: int) -> Samples:
    """Files spread evenly over the list, so that they cover many classes."""
    small = [file for file in files if file.stat().st_size <= limit]
    count = min(most, len(small))
    chosen = [small[index * len(small) // count] for index in range(count)]
    pictures = tuple(Sample(file.relative_to(root).as_posix(), file.read_bytes()) for file in chosen)
    return Samples(pictures, origin, len(files) - len(small), len(files))


def _report_images(run: Path, most: int, before: Samples) -> Samples:
    """The thumbnails in the run's report."""
    file = run / "report_data" / "pictures.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pictures = tuple(Sample(str(name), base64.b64decode(text)) for name, text in list(content.items())[:most])
    except (OSError, ValueError, AttributeError, TypeError):
        return before
    return Samples(pictures, f"{run / 'report_data'}", before.too_large, before.total) if pictures else before
