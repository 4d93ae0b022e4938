"""`data=dogbreeds`: 133 dog breeds in `dogImages/{train,valid,test}/NNN.Breed_name/*.jpg`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from imgcls.data.archives import Archive, ArchivedDataModule
from imgcls.data.folders import readable_names
from imgcls.data.imagefolder import find_tree, split_folders
from imgcls.data.sources import Source


class DogBreeds(ArchivedDataModule):
    """The dog breeds of Udacity's archive, or any folder with its layout."""

    title = "Udacity's dog-breed archive"
    layout = "dogImages/{train,valid,test}/NNN.Breed_name"
    default_archive = Archive("https://s3-us-west-1.amazonaws.com/udacity-aind/dog-project/dogImages.zip")

    def find(self) -> Source:
        """The three splits of the archive."""
        return find_dogbreeds(self.locate(["dogImages"], lambda folder: "train" in split_folders(folder)))


def find_dogbreeds(folder: Path) -> Source:
    """The images of the folders train, valid and test in `folder`. Raises UserError."""
    source = find_tree(folder, split_folders(folder), ("train", "test"), DogBreeds.layout)
    return replace(source, class_names=readable_names(source.class_names))
