"""What a report needs from the images, written while they are available: `report_data/*.json` in the run folder."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imgcls.data.checks import inspect_few
from imgcls.data.duplicates import find_duplicates
from imgcls.data.module import ImageDataModule
from imgcls.data.showing import label_text
from imgcls.images.channels import preview
from imgcls.images.jpeg import encode_jpeg
from imgcls.models.classifier import Classifier
from imgcls.report.gradcam import overlays
from imgcls.report.selection import misclassified, samples, top_losses
from imgcls.runs.reading import read_predictions
from imgcls.system.files import atomic_write_text

log = logging.getLogger(__name__)

PARTS = ("counts", "duplicates", "pictures", "augmented", "gradcam")
SIDE_PX = 128  # of an image on the page
SIDES_PX: Mapping[float, int] = {25: 224, 60: 160, 120: 128, 240: 96, math.inf: 64}
"""The side of misclassified images, where there are up to this number of them."""
MAX_CHARACTERS = 420_000  # of the images of the page, which stays below a megabyte
MARKUP_CHARACTERS = 450  # of one image's place on it
MAX_IMAGES = 600
AUGMENTED, EXPLAINED = 12, 8  # images
MAX_DECODED = 2000  # files of a split to decode again in search of duplicates, which takes seconds
MAX_COMPARED = 100_000  # images of all splits
KEPT_DUPLICATES = 100
DUPLICATES_UNKNOWN = (
    "Whether images are in two splits is unknown, because every file must be read for it. python -m imgcls.prepare "
    "with the same options for data does so, and keeps the result for the next run."
)


def gather(
    folder: Path, datamodule: ImageDataModule, classifier: Classifier | None, only: Sequence[str] = PARTS
) -> None:
    """Write the files of `report_data`, or `only` some; a part that fails becomes a warning and a reason.

    - `counts.json`: `splits`, split to the number of images of each class; `notes`.
    - `duplicates.json`: how many were `found`, the first 100 as `rows`; or a `note` why they are unknown.
    - `pictures.json`: file name to a small JPEG as base64, for the samples and, as far as there is room, the
      misclassified images.
    - `augmented.json`: `pictures`, each `label` and `image`, as used in training; empty without augmentation.
    - `gradcam.json`: `pictures`, file name to `image`, `shown` (the label) and `seen` (the predicted class); or the
      `reason` why there are none.
    """
    parts: dict[str, Callable[[], Mapping[str, Any]]] = {
        "counts": lambda: _count(datamodule),
        "duplicates": lambda: _list_duplicates(datamodule),
        "pictures": lambda: _collect_thumbnails(folder, datamodule),
        "augmented": lambda: _augment(datamodule),
        "gradcam": lambda: _explain(folder, datamodule, classifier),
    }
    for name in only:
        try:
            content = parts[name]()
        except Exception as error:  # a finished training must not fail on its report
            content = {"reason": f"This section could not be created: {type(error).__name__}: {error}"}
            log.warning("Report: no %s. %s: %s", name, type(error).__name__, error)
        atomic_write_text(folder / "report_data" / f"{name}.json", json.dumps(content) + "\n")


def _count(datamodule: ImageDataModule) -> dict[str, Any]:
    source, classes = datamodule.source, datamodule.num_classes
    counts = {name: split.class_counts(classes).tolist() for name, split in source.splits().items()}
    return {"classes": list(source.class_names), "splits": counts, "notes": list(source.notes)}


def _list_duplicates(datamodule: ImageDataModule) -> dict[str, Any]:
    splits, cache = datamodule.source.splits(), datamodule.cache
    if sum(map(len, splits.values())) > MAX_COMPARED:
        return {"note": DUPLICATES_UNKNOWN}
    findings = {}
    for name, split in splits.items():
        found = inspect_few(split.pictures, MAX_DECODED, cache, datamodule.num_workers, datamodule.depth)
        if found is None:
            return {"note": DUPLICATES_UNKNOWN}
        findings[name] = found
    pairs = find_duplicates(datamodule.source, findings, cache, datamodule.num_workers)
    rows = [
        {
            "split": pair.split,
            "picture": pair.name,
            "also in": pair.other_split,
            "as": pair.other_name,
            "how": pair.kind if pair.same_class else f"{pair.kind}, another class",
        }
        for pair in sorted(pairs, key=lambda pair: (pair.same_class, pair.kind))[:KEPT_DUPLICATES]
    ]
    return {"found": len(pairs), "rows": rows, **({} if pairs else {"note": "No image is in two splits."})}


def _collect_thumbnails(folder: Path, datamodule: ImageDataModule) -> dict[str, str]:
    """Samples and misclassified images, the largest loss first, until the page would become too large."""
    predictions, test = read_predictions(folder), datamodule.source.test
    if test is None:
        return {}
    index = {name: index for index, name in enumerate(test.names)}
    wrong = [row["file"] for row in misclassified(predictions)]
    side = next(side for most, side in SIDES_PX.items() if len(wrong) <= most)
    files = dict.fromkeys([*(row["file"] for row in samples(predictions)), *wrong])
    shown, images = set(wrong[:MAX_IMAGES]), dict[str, str]()
    left = MAX_CHARACTERS
    for file in files:
        images[file] = thumbnail(test.preview(index[file], datamodule.depth), side if file in shown else SIDE_PX)
        left -= len(images[file]) + MARKUP_CHARACTERS
        if left < 0 or len(images) > MAX_IMAGES:
            break
    return images


def _augment(datamodule: ImageDataModule) -> dict[str, Any]:
    if not datamodule.augment.changes:  # as for a head that trains on the features of the images as they are
        return {}
    images, labels = datamodule.training_examples(AUGMENTED)
    return {
        "pictures": [
            {"label": label_text(datamodule.class_names, label), "image": thumbnail(preview(image))}
            for image, label in zip(images, labels, strict=True)
        ]
    }


def _explain(folder: Path, datamodule: ImageDataModule, classifier: Classifier | None) -> dict[str, Any]:
    predictions, test = read_predictions(folder), datamodule.source.test
    if test is None or not predictions or classifier is None:
        return {"reason": "There are no test images to explain."}
    rows = {row["file"]: row for row in [*top_losses(predictions)[: EXPLAINED // 2], *samples(predictions)]}
    chosen = list(rows.values())[:EXPLAINED]
    index = {name: index for index, name in enumerate(test.names)}
    preprocessing = datamodule.preprocessing
    opened = [preprocessing.open(test.pictures[index[row["file"]]]) for row in chosen]
    pixels = np.stack([preprocessing.pixels(picture) for picture in opened])
    predicted = [datamodule.class_names.index(row["top1"]) for row in chosen]  # of several labels the likeliest
    images = overlays(classifier.network, preprocessing, pixels, predicted)
    if isinstance(images, str):
        return {"reason": images}
    return {
        "pictures": {
            row["file"]: {
                "image": thumbnail(Image.fromarray(image)),
                "seen": row["predicted"],
                "shown": row["label"],
            }
            for row, image in zip(chosen, images, strict=True)
        }
    }


def thumbnail(image: Image.Image, side: int = SIDE_PX) -> str:
    """A small JPEG of `image`, as base64, of at most `side` pixels each way."""
    return base64.b64encode(encode_jpeg(image, side, 80, optimize=True)).decode()
