"""`data=dogbreeds`: 133 dog breeds, `dogImages/{train,valid,test}/NNN.Breed_name/*.jpg`."""

from __future__ import annotations

from imgcls.data.archives import Archive, ArchivedDataModule
from imgcls.data.folders import find_splits
from imgcls.data.imagefolder import split_folders
from imgcls.data.sources import Source
from imgcls.errors import UserError


class DogBreeds(ArchivedDataModule):
    """The dog breeds of Udacity's archive, or any folder laid out as it is."""

    title = "The dog breeds"
    layout = "dogImages/{train,valid,test}/NNN.Breed_name"
    default_archive = Archive("https://s3-us-west-1.amazonaws.com/udacity-aind/dog-project/dogImages.zip")

    def find(self) -> Source:
        """The three splits of the archive."""
        folder = self.located(["dogImages"], holds=lambda path: "train" in split_folders(path))
        places = split_folders(folder)
        if missing := [name for name in ("train", "test") if name not in places]:
            raise UserError(f"{folder} has no folder {missing[0]!r}. Expected {self.layout}.")
        names, splits = find_splits(folder, places)
        return Source(names, splits["train"], splits.get("val"), splits["test"])
