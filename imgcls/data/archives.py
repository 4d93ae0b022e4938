"""Data sets that are published as an archive: find them on disk, or download and unpack them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from imgcls.data.download import download, public_address, unpack
from imgcls.data.folders import need_folder
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.system.cache import alone, data_folder


@dataclass(frozen=True)
class Archive:
    """A file to download, with its expected size and hash."""

    url: str
    size: int | None = None
    """Bytes."""
    md5: str | None = None


class ArchivedDataModule(ImageDataModule):
    """A data set in `root`, or downloaded to the user's cache if there is no `root`.

    Args:
        root: the folder of the images; None: download them.
        url: another address of the archive, whose content is not compared with the hash of the public one.
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
        """The data set's folder: `root`, or the one in the cache."""
        return self.root if self.root is not None else data_folder(type(self).__name__)

    def download(self) -> None:
        """Download and unpack the archive, unless `root` is set or the folder exists; other processes wait meanwhile.

        Raises UserError that says how to do without the download.
        """
        folder, archive = self.folder, self.archive
        if self.root is not None or folder.is_dir():
            return
        with alone(folder):
            if folder.is_dir():
                return
            file = folder.with_name(f"{folder.name}-{public_address(archive.url).rpartition('/')[2][-100:]}")
            try:
                if not file.is_file():
                    download(archive.url, file, size=archive.size, md5=archive.md5)
            except UserError as error:
                raise UserError(
                    f"{self.title} is not in {folder}, and {error}\nSet data.root=DIR to its folder ({self.layout})."
                ) from error
            unpack(file, folder)
            file.unlink()

    def locate(self, inside: Sequence[str], contains: Callable[[Path], bool]) -> Path:
        """The folder that `contains` the data set: one of the names `inside` `folder`, or itself. Raises UserError."""
        if self.root is None and not self.folder.is_dir():
            raise UserError(
                f"{self.title} is not in {self.folder}. Download it with prepare_data(), or set data.root=DIR to its "
                f"folder ({self.layout})."
            )
        root = need_folder(self.folder, type(self).__name__.lower())
        for place in (*(root / name for name in inside), root):
            if place.is_dir() and contains(place):
                return place
        raise UserError(f"data.root={root} does not look like {self.title}. Expected {self.layout}.")
