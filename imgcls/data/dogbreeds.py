"""`data=dogbreeds`: 133 dog breeds, `dogImages/{train,valid,test}/NNN.Breed_name/*.jpg`."""

from __future__ import annotations

from pathlib import Path

from imgcls.data.archives import Archive, ArchivedDataModule
from imgcls.data.imagefolder import find_tree, split_folders
from imgcls.data.sources import Source
from imgcls.errors import UserError


class DogBreeds(ArchivedDataModule):
    """The dog breeds of Udacity's archive, or any folder laid out as it is."""

    title = "the dog-breed archive"
    layout = "dogImages/{train,valid,test}/NNN.Breed_name"
    default_archive = Archive("https://s3-us-west-1.amazonaws.com/udacity-aind/dog-project/dogImages.zip")

    def find(self) -> Source:
        """The three splits of the archive."""
        return find_dogbreeds(self.located(["dogImages"], lambda folder: "train" in split_folders(folder)))


def find_dogbreeds(folder: Path) -> Source:
    """The pictures of the folders train, valid and test in `folder`. Raises UserError."""
    places = split_folders(folder)
    if missing := [split for split in ("train", "test") if split not in places]:
        raise UserError(f"{folder} has no folder {missing[0]!r}. Expected {DogBreeds.layout}.")
    return find_tree(folder, places)
