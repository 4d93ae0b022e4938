"""The training images that are most like each misclassified one, by the features of a frozen backbone."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from imgcls.data.batched import BatchedData
from imgcls.data.feature_module import FeatureDataModule
from imgcls.data.module import ImageDataModule
from imgcls.report.report_data import MARKUP_CHARACTERS, thumbnail
from imgcls.report.selection import misclassified
from imgcls.runs.reading import read_predictions
from imgcls.system.files import atomic_write_text

log = logging.getLogger(__name__)

NEIGHBOURS = 3
SIDE_PX = 80
MAX_CHARACTERS = 100_000  # of these images on the page of a report


def try_neighbours(folder: Path, images: ImageDataModule, data: BatchedData) -> None:
    """Write `report_data/neighbours.json` at the end of the training in `folder`, where features are stored.

    Of misclassified test images, the largest loss first: the three training images with the highest cosine similarity.
    """
    if not isinstance(data, FeatureDataModule) or images.multilabel or not {"train", "test"} <= data.features.keys():
        return
    try:
        found = _find(folder, images, data)
    except Exception as error:  # a finished training must not fail on its report
        log.warning("Report: no similar training images. %s: %s", type(error).__name__, error)
        return
    atomic_write_text(folder / "report_data" / "neighbours.json", json.dumps({"pictures": found}) + "\n")


def _find(folder: Path, images: ImageDataModule, data: FeatureDataModule) -> dict[str, list[dict[str, str]]]:
    test, train = images.source.test, images.source.train
    if test is None:
        return {}
    index = {name: place for place, name in enumerate(test.names)}
    known = data.features["train"].features[0]
    lengths = np.maximum(np.linalg.norm(known, axis=1), 1e-12)
    found: dict[str, list[dict[str, str]]] = {}
    left = MAX_CHARACTERS
    for row in misclassified(read_predictions(folder)):
        similarity = known @ data.features["test"].features[0, index[row["file"]]] / lengths
        near = [
            {
                "image": thumbnail(train.preview(int(place), images.depth), SIDE_PX),
                "label": images.class_names[int(train.labels[place])],
            }
            for place in np.argsort(-similarity, kind="stable")[:NEIGHBOURS]
        ]
        left -= sum(len(other["image"]) + MARKUP_CHARACTERS // 2 for other in near)
        if left < 0:
            break
        found[row["file"]] = near
    return found
