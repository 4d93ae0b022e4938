"""Data sets that come as a public archive: where they are, and what to say when they are not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from imgcls.data.download import download, unpack
from imgcls.data.folders import need_folder
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.system.cache import alone, data_folder


@dataclass(frozen=True)
class Archive:
    """A file to download, and how to know that it is the right one."""

    url: str
    size: int | None = None
    """bytes"""
    md5: str | None = None


class ArchivedDataModule(ImageDataModule):
    """A data set in `root`, or downloaded to the user's cache where `root` is not given.

    Args:
        root: the folder of the pictures; None: download them.
        url: another address of the archive, whose content is then not compared with the public one's hash.
        **options: of ImageDataModule.
    """

    title: ClassVar[str]
    layout: ClassVar[str]
    default_archive: ClassVar[Archive]

    def __init__(self, root: str | Path | None = None, *, url: str | None = None, **options: object) -> None:
        super().__init__(root, **options)  # type: ignore[arg-type]
        self.archive = Archive(url) if url is not None and url != self.default_archive.url else self.default_archive

    @property
    def folder(self) -> Path:
        """Where the data set is: `root`, or its place in the cache."""
        return self.root if self.root is not None else data_folder(type(self).__name__)

    def download(self) -> None:
        """Download and unpack the archive, unless `root` is given or it is there already. Raises UserError."""
        if self.root is None and not self.folder.is_dir():
            fetch(self.archive, self.folder, self.title, self.layout)

    def located(self, inside: Sequence[str], holds: Callable[[Path], bool]) -> Path:
        """The folder that `holds` the data set: `folder` itself, or one of the names `inside` it. Raises UserError."""
        if self.root is None and not self.folder.is_dir():
            raise UserError(
                f"{_sentence(self.title)} is not in {self.folder}. prepare_data() downloads it; or give its folder "
                f"with data.root=DIR ({self.layout})."
            )
        return locate(need_folder(self.folder, type(self).__name__.lower()), inside, holds, self.title, self.layout)


def fetch(archive: Archive, folder: Path, title: str, layout: str) -> None:
    """Bring the content of `archive` to the new `folder`; of several processes one does, and the others wait.

    Raises UserError that says how to do without the download.
    """
    with alone(folder):
        if folder.is_dir():
            return
        file = folder.with_name(f"{folder.name}-{archive.url.rpartition('/')[2]}")
        try:
            if not file.is_file():
                download(archive.url, file, size=archive.size, md5=archive.md5)
        except UserError as error:
            raise UserError(
                f"{_sentence(title)} is not in {folder}, and {error}\nGive its folder with data.root=DIR ({layout})."
            ) from error
        unpack(file, folder)
        file.unlink()


def locate(root: Path, inside: Sequence[str], holds: Callable[[Path], bool], title: str, layout: str) -> Path:
    """The folder that `holds` the data set: one of the names `inside` `root`, or `root` itself. Raises UserError."""
    for place in (*(root / name for name in inside), root):
        if place.is_dir() and holds(place):
            return place
    raise UserError(f"data.root={root} does not look like {title}. Expected {layout}.")


def _sentence(title: str) -> str:
    return title[:1].upper() + title[1:]
