"""Data sets that come as a public archive: where they are, and what to say when they are not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from imgcls.data.download import download, unpack
from imgcls.data.folders import need_folder
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError


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
        return self.root if self.root is not None else cache_folder() / "data" / type(self).__name__.lower()

    def download(self) -> None:
        """Download and unpack the archive, unless `root` is given or it is there already."""
        if self.root is not None or self.folder.is_dir():
            return
        archive = self.folder.with_name(self.archive.url.rpartition("/")[2])
        try:
            download(self.archive.url, archive, size=self.archive.size, md5=self.archive.md5)
        except UserError as error:
            raise UserError(
                f"{self.title} are not in {self.folder} and cannot be downloaded: {error}\n"
                f"Give their folder with data.root=DIR ({self.layout})."
            ) from error
        unpack(archive, self.folder)
        archive.unlink()

    def located(self, inside: Sequence[str], holds: Callable[[Path], bool]) -> Path:
        """The folder that `holds` the data set: `folder` itself, or one of the names `inside` it. Raises UserError."""
        folder = need_folder(self.folder, type(self).__name__.lower())
        for place in (folder, *(folder / name for name in inside)):
            if place.is_dir() and any((place / name).is_dir() for name in inside):
                continue  # the archive's own folder is deeper
            if place.is_dir() and holds(place):
                return place
        raise UserError(f"data.root={folder} does not look like {self.title}. Expected {self.layout}.")


def cache_folder() -> Path:
    """Where downloads and stores are kept: $IMGCLS_CACHE, or `imgcls` in the user's cache folder."""
    if own := os.environ.get("IMGCLS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imgcls"
