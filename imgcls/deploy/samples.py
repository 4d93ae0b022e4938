"""Real pictures to ask an endpoint with: of a folder, of the run's own test set, or those that its folder keeps."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imgcls.errors import UserError
from imgcls.pictures import PICTURE_SUFFIXES
from imgcls.runs.provenance import stored_configuration
from imgcls.runs.reading import read_predictions


@dataclass(frozen=True)
class Sample:
    """A picture as a file's content."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Samples:
    """What an endpoint is asked with.

    Attributes:
        pictures: the ones that are sent.
        where: where they are from, in words.
        too_large: how many of the pictures that were looked at are larger than a request may be.
        seen: how many were looked at.
    """

    pictures: tuple[Sample, ...]
    where: str
    too_large: int = 0
    seen: int = 0


def find_samples(run: Path, pictures: str | None, most: int, limit: int) -> Samples:
    """Up to `most` pictures of at most `limit` bytes.

    Args:
        run: the run's folder.
        pictures: a folder of pictures; None: those of the run.
        most: how many.
        limit: bytes of a request.

    Raises:
        UserError: there are none.
    """
    if pictures is not None:
        folder = Path(pictures).expanduser()
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES)
        found = _read(files, folder, str(folder), most, limit)
        if not found.seen:
            raise UserError(f"pictures={pictures}: there are no pictures in this folder.")
    else:
        found = _of_the_data_set(run, most, limit)
        if not found.pictures:
            found = _kept(run, most, found)
    if not found.pictures:
        if found.seen:
            raise UserError(f"Each of the {found.seen} pictures in {found.where} has more than {limit >> 20} MB.")
        raise UserError(f"{run} keeps no pictures to test the endpoint with. Give pictures=FOLDER, or test=false.")
    return found


def _of_the_data_set(run: Path, most: int, limit: int) -> Samples:
    """Of the test pictures that `predictions.csv` names, where the data set is a folder that is here."""
    root, predictions = _root(run), read_predictions(run)
    if root is None or not predictions:
        return Samples((), "")
    files = [root / row["file"] for row in predictions]
    return _read([file for file in files if file.is_file()], root, f"the test set in {root}", most, limit)


def _root(run: Path) -> Path | None:
    """The folder of the run's data set."""
    config = stored_configuration(run) if (run / "config.yaml").is_file() else {}
    root = (config.get("data") or {}).get("root")
    return Path(str(root)).expanduser() if root is not None and "://" not in str(root) else None


def _read(files: Sequence[Path], root: Path, where: str, most: int, limit: int) -> Samples:
    """Files from all over the list, so that they are of many classes."""
    small = [file for file in files if file.stat().st_size <= limit]
    count = min(most, len(small))
    chosen = [small[place * len(small) // count] for place in range(count)]
    pictures = tuple(Sample(file.relative_to(root).as_posix(), file.read_bytes()) for file in chosen)
    return Samples(pictures, where, len(files) - len(small), len(files))


def _kept(run: Path, most: int, before: Samples) -> Samples:
    """The small pictures that the run's report is made of."""
    file = run / "report_data" / "pictures.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pictures = tuple(Sample(str(name), base64.b64decode(text)) for name, text in list(content.items())[:most])
    except (OSError, ValueError, AttributeError, TypeError):
        return before
    return Samples(pictures, f"{run / 'report_data'}", before.too_large, before.seen) if pictures else before
