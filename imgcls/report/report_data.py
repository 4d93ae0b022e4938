"""What a report needs of the pictures, written while they are at hand: `report_data/*.json` in the run folder."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from imgcls.data.batch import Fate, RawBatch
from imgcls.data.randomness import Draws
from imgcls.report.gradcam import overlays
from imgcls.report.selection import most_wrong, samples
from imgcls.runs.reading import read_predictions
from imgcls.system.files import atomic_write_text

if TYPE_CHECKING:
    from imgcls.data.module import ImageDataModule
    from imgcls.models.classifier import Classifier

log = logging.getLogger(__name__)

SIDE = 128  # of a picture on the page, px
AUGMENTED, EXPLAINED = 12, 8
MOST_DECODED = 2000  # files that are looked at again for duplicates; seconds
MOST_COMPARED = 100_000  # pictures of all splits
KEPT_DUPLICATES = 100
NOT_LOOKED = (
    "Whether pictures are in two splits is not known: it takes a look at every file, which python -m imgcls.prepare, "
    "with the same words for data, has and remembers for the next run."
)


def gather(folder: Path, datamodule: ImageDataModule, classifier: Classifier) -> None:
    """Write the files of `report_data`; what fails is a warning and a reason.

    - `counts.json`: `splits`, split to the pictures of each class; `notes`.
    - `duplicates.json`: how many were `found`, the first 100 as `rows`; or a `note` why nobody looked.
    - `pictures.json`: file name to a small JPEG as base64, for the most wrong pictures and the samples.
    - `augmented.json`: `pictures`, each `label` and `image`, as training sees them.
    - `gradcam.json`: `pictures`, file name to `image` and `seen`; or the `reason` why there are none.
    """
    parts: dict[str, Callable[[], Mapping[str, Any]]] = {
        "counts": lambda: _count(datamodule),
        "duplicates": lambda: _list_duplicates(datamodule),
        "pictures": lambda: _collect_pictures(folder, datamodule),
        "augmented": lambda: _augment(datamodule),
        "gradcam": lambda: _explain(folder, datamodule, classifier),
    }
    for name, make in parts.items():
        try:
            content = make()
        except Exception as error:  # a finished training must not fail on its report
            content = {"reason": f"They could not be made: {type(error).__name__}: {error}"}
            log.warning("Report: no %s. %s: %s", name, type(error).__name__, error)
        atomic_write_text(folder / "report_data" / f"{name}.json", json.dumps(content) + "\n")


def _count(datamodule: ImageDataModule) -> dict[str, Any]:
    source, classes = datamodule.source, datamodule.num_classes
    counts = {name: split.class_counts(classes).tolist() for name, split in source.splits().items()}
    return {"classes": list(source.class_names), "splits": counts, "notes": list(source.notes)}


def _list_duplicates(datamodule: ImageDataModule) -> dict[str, Any]:
    from imgcls.data.checks import count_cached, inspect
    from imgcls.data.duplicates import find_duplicates

    splits = datamodule.source.splits()
    cache, count = datamodule.cache, sum(map(len, splits.values()))
    unseen = sum(len(split.files) - count_cached(split.files, cache) for split in splits.values())
    if unseen > MOST_DECODED or count > MOST_COMPARED:
        return {"note": NOT_LOOKED}
    seen = {name: inspect(split.pictures, cache, datamodule.num_workers) for name, split in splits.items()}
    found = find_duplicates(datamodule.source, seen)
    rows = [
        {
            "split": pair.split,
            "picture": pair.name,
            "also in": pair.other_split,
            "as": pair.other_name,
            "how": pair.kind if pair.same_class else f"{pair.kind}, another class",
        }
        for pair in sorted(found, key=lambda pair: (pair.same_class, pair.kind))[:KEPT_DUPLICATES]
    ]
    return {"found": len(found), "rows": rows, **({} if found else {"note": "No picture is in two splits."})}


def _collect_pictures(folder: Path, datamodule: ImageDataModule) -> dict[str, str]:
    predictions, test = read_predictions(folder), datamodule.source.test
    if test is None:
        return {}
    place = {name: index for index, name in enumerate(test.names)}
    wanted = dict.fromkeys(row["file"] for row in [*most_wrong(predictions), *samples(predictions)])
    return {name: _encode_jpeg(test.open(place[name])) for name in wanted}


def _augment(datamodule: ImageDataModule) -> dict[str, Any]:
    store, split = datamodule.store_of("train"), datamodule.source.train
    which = torch.from_numpy(np.unique(np.linspace(0, len(split) - 1, AUGMENTED).astype(np.int64)))
    labels = torch.from_numpy(split.labels)[which]
    fate = Fate(Draws.of(datamodule.seed, 0, which), torch.from_numpy(store.aspects)[which])
    batch = datamodule.on_after_batch_transfer(RawBatch(store.gather(which), labels, which, fate), 0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (datamodule.mean, datamodule.std))
    pixels = (batch.images.float() * std + mean).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    names = [datamodule.class_names[label] for label in labels.tolist()]
    shown = [_encode_jpeg(Image.fromarray(np.ascontiguousarray(picture))) for picture in pixels]
    return {"pictures": [{"label": name, "image": image} for name, image in zip(names, shown, strict=True)]}


def _explain(folder: Path, datamodule: ImageDataModule, classifier: Classifier) -> dict[str, Any]:
    predictions, test = read_predictions(folder), datamodule.source.test
    if test is None or not predictions:
        return {"reason": "There are no test pictures to explain."}
    half = EXPLAINED // 2
    rows = {row["file"]: row for row in [*most_wrong(predictions)[:half], *samples(predictions)]}
    chosen = list(rows.values())[:EXPLAINED]
    place = {name: index for index, name in enumerate(test.names)}
    pixels = np.stack([datamodule.preprocessing.pixels(test.open(place[row["file"]])) for row in chosen])
    seen = [datamodule.class_names.index(row["predicted"]) for row in chosen]
    drawn = overlays(classifier.network, datamodule.preprocessing, pixels, seen)
    if isinstance(drawn, str):
        return {"reason": drawn}
    return {
        "pictures": {
            row["file"]: {
                "image": _encode_jpeg(Image.fromarray(picture)),
                "seen": row["predicted"],
                "shown": row["label"],
            }
            for row, picture in zip(chosen, drawn, strict=True)
        }
    }


def _encode_jpeg(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    if max(small.size) < SIDE // 2:  # a browser would blur the few pixels of a digit
        factor = SIDE // max(small.size)
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
