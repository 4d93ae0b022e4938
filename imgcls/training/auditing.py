"""The audit of the images of a training, by the features of its backbone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imgcls.audit.errors import See
from imgcls.audit.findings import Audit
from imgcls.audit.quality import measure_sharpness
from imgcls.audit.search import audit
from imgcls.audit.tables import as_data, as_table
from imgcls.data.batched import BatchedData
from imgcls.data.checks import Findings, inspect, inspect_few
from imgcls.data.feature_module import evaluation_features
from imgcls.data.module import ImageDataModule
from imgcls.data.stores.features import FeatureStore
from imgcls.errors import UserError
from imgcls.images.preprocessing import sides
from imgcls.models.depths import at_depths
from imgcls.models.network import Network
from imgcls.report.report_data import MAX_DECODED, thumbnail
from imgcls.runs.reading import read_outputs
from imgcls.system.files import atomic_write_text
from imgcls.training.frozen_backbone import BATCH, compute_features, running

log = logging.getLogger(__name__)

MOST_PRODUCTS = 2**27
"""The most products of images, features and classes that are audited at the end of a training, in seconds."""


def audit_images(
    images: ImageDataModule,
    network: Network,
    device: torch.device | None,
    *,
    features: Mapping[str, FeatureStore] | None = None,
    findings: Mapping[str, Findings] | None = None,
    predicted: np.ndarray | None = None,
) -> Audit:
    """Audit all images of a data set.

    Args:
        images: set up.
        network: its backbone computes the features; the best one has not been trained on these labels. Several of its
            depths judge the labels.
        device: where it runs; None: it does not run again, not even to see what the crop cuts off.
        features: of all splits by the backbone, if they are there already and no others are to be computed.
        findings: of all splits, likewise.
        predicted: int64 (M,), the classes of the validation images by the model whose errors are explained; None: those
            of a head on the features.

    Raises:
        UserError: images have several labels.
    """
    if images.multilabel:
        raise UserError("The audit is for images with one label each, not for task=multilabel.")
    if features is None:
        features = compute_features(images, at_depths(network), device=device or torch.device("cpu"))
    splits = images.source.splits()
    if findings is None:
        findings = {
            name: inspect(split.pictures, images.cache, images.num_workers, images.depth)
            for name, split in splits.items()
        }
    log.info("Auditing %s images.", f"{sum(map(len, splits.values())):,}")
    return audit(
        images.source,
        {name: features[name].features[0] for name in splits},
        findings,
        own_features=network.num_features,
        sharpness=measure_sharpness([images.store_of(name, evaluation=True) for name in splits]),
        input_side=min(sides(images.image_size)),
        predicted=predicted,
        see_whole=_see_whole(images, network, device) if device is not None else None,
        seed=images.seed,
    )


def try_audit(folder: Path, images: ImageDataModule, network: Network, data: BatchedData) -> None:
    """Audit the images at the end of the training in `folder`, where all features are there and it takes seconds.

    What the crop cuts off is not asked, since the backbone would have to run again.
    """
    splits = images.source.splits()
    features = evaluation_features(data)
    if images.multilabel or set(features) != set(splits):
        return
    values = sum(map(len, splits.values())) * network.num_features
    if values * images.num_classes > MOST_PRODUCTS:
        return
    try:
        findings = {}
        for name, split in splits.items():
            known = inspect_few(split.pictures, MAX_DECODED, images.cache, images.num_workers, images.depth)
            if known is None:
                return
            findings[name] = known
        found = audit_images(
            images,
            network,
            None,
            features=features,
            findings=findings,
            predicted=stored_classes(folder, images),
        )
        write_audit(found, folder, images, report=True)
    except Exception as error:  # a finished training must not fail on its report
        log.warning("The images could not be audited. %s: %s", type(error).__name__, error)


def stored_classes(folder: Path, images: ImageDataModule) -> np.ndarray | None:
    """int64 (M,): the classes of the validation images by the model of the run in `folder`.

    None where they are not stored, or of other images.
    """
    outputs, val = read_outputs(folder, "val"), images.source.val
    if outputs is None or val is None or not np.array_equal(outputs[1], val.labels):
        return None
    return outputs[0].argmax(axis=1)


def _see_whole(images: ImageDataModule, network: Network, device: torch.device) -> See | None:
    """Computes the features of whole validation images; None where nothing is cut off from them."""
    val = images.source.val
    if val is None or images.fit != "crop" or not val.files:
        return None
    whole = replace(images.preprocessing, fit="squash")

    def see(rows: np.ndarray) -> Tensor:
        parts = [torch.empty(0, network.num_features)]
        with running(network, device, network.mean_features) as features:
            for start in range(0, len(rows), BATCH):
                opened = [whole.open(val.pictures[row]) for row in rows[start : start + BATCH].tolist()]
                pixels = np.stack([whole.pixels(picture) for picture in opened])
                parts.append(features(torch.from_numpy(whole.normalise(pixels)).to(device)))
        return torch.cat(parts)

    return see


def write_audit(found: Audit, folder: Path, images: ImageDataModule, *, report: bool = False) -> Path:
    """Write `audit.csv` to `folder`, for a `report` also what it shows; return the path of the table."""
    file = folder / "audit.csv"
    atomic_write_text(file, as_table(found, images.root))
    if report:

        def thumbnail_of(image: int) -> str:
            split, row = found.place(image)
            return thumbnail(found.source.splits()[split].preview(row, images.depth))

        atomic_write_text(folder / "report_data" / "audit.json", json.dumps(as_data(found, thumbnail_of)) + "\n")
    return file
