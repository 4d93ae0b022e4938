"""`data=huggingface`: a data set of the Hugging Face hub, or a local copy, read with the `datasets` library.

Nothing in a data set is executed: `datasets` from 4 on has no loading scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imgcls.data.embedded import EmbeddedImages
from imgcls.data.imagefolder import USUAL_NAMES
from imgcls.data.table import Table, choose_columns
from imgcls.data.table_files import Columns
from imgcls.errors import UserError, first_line
from imgcls.images.paths import file_state
from imgcls.system.extras import need

SAVED = ("dataset_dict.json", "state.json")
SPLIT_COLUMN = "split"


class HuggingFace(Table):
    """The images of a data set of Hugging Face, with its splits, or split by imgcls where it has none.

    Args:
        root: a local copy: what `save_to_disk` wrote, or a folder of Parquet or image files; None: from the hub.
        name: of the data set on the hub, such as `ethz/food101`.
        config: the configuration of the data set, where it has several.
        revision: branch, tag or commit on the hub; None: the newest.
        image_column, label_column, weight_column: names of columns; the only image column, and the usual names, if
            None. Lists of labels are several labels for one image.
        test_fraction: share of the images that is used for testing if there is no test split.
        **options: of ImageDataModule; `group` may also be the name of a column.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        name: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        weight_column: str | None = None,
        test_fraction: float = 0.2,
        **options: Any,
    ) -> None:
        if (name is None) == (root is None):
            raise UserError("data=huggingface needs data.name=NAME of the hub, or data.root=DIR, a local copy.")
        super().__init__(
            root,
            table=name or str(root),
            file_column=image_column,
            label_column=label_column,
            weight_column=weight_column,
            test_fraction=test_fraction,
            **options,
        )
        self.name, self.config, self.revision = name, config, revision

    def download(self) -> None:
        """Download the data set and unpack its images, if they are not in the cache."""
        self.unpack(self.read()[2])

    def read(self) -> tuple[Path, Columns, dict[str, Any]]:
        """The rows of all splits, one after the other. Raises UserError if there is no such data set."""
        datasets = need("datasets", "huggingface", "data=huggingface")
        splits = self._load(datasets)
        [first, *_] = splits.values()
        image = self._image_column(datasets, first.features)
        wanted = {**self.columns, "file": image, "split": None}
        where = Path(self.table)
        chosen = choose_columns(where, list(first.features), wanted)
        chosen.pop("split", None)
        cells: dict[str, Any] = {
            role: [cell for split in splits.values() for cell in _texts(split, column)]
            for role, column in chosen.items()
            if role != "file"
        }
        places = [name for name, split in splits.items() for _ in range(len(split))]
        if len(splits) > 1 or next(iter(splits)) in USUAL_NAMES["test"]:
            cells["split"] = places
        files = [
            (file["filename"], file_state(Path(file["filename"]))) for s in splits.values() for file in s.cache_files
        ]
        pictures = {name: split.cast_column(image, datasets.Image(decode=False)) for name, split in splits.items()}

        def images() -> Iterator[Any]:
            for split in pictures.values():
                for batch in split.select_columns([image]).iter(batch_size=64):
                    yield from batch[image]

        cells["file"] = EmbeddedImages([image, [*splits], files], images)
        return where, Columns({}, range(1, len(places) + 1), "row"), cells

    def _load(self, datasets: Any) -> dict[str, Any]:
        """The splits with usual names, by their names."""
        datasets.disable_progress_bars()
        try:
            if self.root is not None and any((self.root / name).is_file() for name in SAVED):
                loaded = datasets.load_from_disk(str(self.root))
            else:
                place = str(self.root.resolve()) if self.root is not None else self.name
                loaded = datasets.load_dataset(place, self.config, revision=self.revision)
        except Exception as error:  # of the library, the hub, the network or the files
            raise UserError(f"data=huggingface: {self.table} cannot be loaded: {first_line(error)}") from error
        found = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
        usual = {name for names in USUAL_NAMES.values() for name in names}
        used = {name: split for name, split in found.items() if name.lower() in usual}
        if not used:
            raise UserError(f"{self.table} has no split train, only {', '.join(found)}.")
        return {name: split for name, split in used.items() if len(split) and not self._is_unlabelled(split)}

    def _is_unlabelled(self, split: Any) -> bool:
        """Whether all labels are -1, as those of the test images of a competition."""
        label = next((name for name in (self.columns["label"], "label") if name in split.features), None)
        return label is not None and hasattr(split.features[label], "names") and set(split[label]) == {-1}

    def _image_column(self, datasets: Any, features: Mapping[str, Any]) -> str:
        if (wanted := self.columns["file"]) is not None:
            return wanted
        found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        if len(found) != 1:
            named = f"the image columns {', '.join(found)}" if found else f"no image column, only {', '.join(features)}"
            raise UserError(f"{self.table} has {named}. Choose one: data.image_column=NAME.")
        return found[0]


def _texts(split: Any, column: str) -> list[Any]:
    """The cells of a column, labels by their names."""
    feature, cells = split.features[column], list(split[column])
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    if names is None:
        return ["" if cell is None else cell for cell in cells]

    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(item) for item in value]
        return names[value] if value is not None and value >= 0 else ""

    return [text(cell) for cell in cells]
