"""The audit of the images of a training, by the features of its backbone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgcls.audit.errors import See
from imgcls.audit.findings import Audit
from imgcls.audit.quality import measure_sharpness
from imgcls.audit.search import audit
from imgcls.audit.tables import as_data, as_table
from imgcls.data.checks import inspect
from imgcls.data.module import ImageDataModule
from imgcls.data.stores.features import FeatureStore
from imgcls.errors import UserError
from imgcls.models.network import Network
from imgcls.preprocessing import sides
from imgcls.report.report_data import encode_jpeg
from imgcls.system.files import atomic_write_text
from imgcls.training.frozen_backbone import BATCH, compute_features

log = logging.getLogger(__name__)


def audit_images(
    images: ImageDataModule,
    network: Network,
    device: torch.device,
    *,
    features: Mapping[str, FeatureStore] | None = None,
    predicted: np.ndarray | None = None,
) -> Audit:
    """Audit all images of a data set.

    Args:
        images: set up.
        network: its backbone computes the features; the best one has not been trained on these labels.
        device: where it runs.
        features: of all splits, if they are there already.
        predicted: int64 (M,), the classes of the validation images by the model whose errors are explained; None: those
            of a head on the features.

    Raises:
        UserError: images have several labels.
    """
    if images.multilabel:
        raise UserError("The audit is for images with one label each, not for task=multilabel.")
    features = features or compute_features(images, network, device=device)
    splits = images.source.splits()
    log.info("Auditing %d images.", sum(map(len, splits.values())))
    return audit(
        images.source,
        {name: features[name].features[0] for name in splits},
        {name: inspect(split.pictures, images.cache, images.num_workers) for name, split in splits.items()},
        sharpness=measure_sharpness([images.store_of(name, evaluation=True) for name in splits]),
        input_side=min(sides(images.image_size)),
        predicted=predicted,
        see_whole=_see_whole(images, network, device),
        seed=images.seed,
    )


def _see_whole(images: ImageDataModule, network: Network, device: torch.device) -> See | None:
    """Computes the features of whole validation images; None where nothing is cut off from them."""
    val = images.source.val
    if val is None or images.fit != "crop" or not val.files:
        return None
    whole = replace(images.preprocessing, fit="squash")

    def see(rows: np.ndarray) -> Tensor:
        was_training = network.training
        network.to(device).eval()
        parts = []
        with torch.inference_mode():
            for start in range(0, len(rows), BATCH):
                pixels = np.stack([whole.pixels(val.open(row)) for row in rows[start : start + BATCH].tolist()])
                parts.append(network.features(torch.from_numpy(whole.normalise(pixels)).to(device)).float().cpu())
        network.to("cpu").train(was_training)
        return torch.cat(parts) if parts else torch.empty(0, network.num_features)

    return see


def write_audit(found: Audit, folder: Path, images: ImageDataModule, *, report: bool = False) -> Path:
    """Write `audit.csv` to `folder`, for a `report` also what it shows; return the path of the table."""
    file = folder / "audit.csv"
    atomic_write_text(file, as_table(found, images.root))
    if report:

        def thumbnail(image: int) -> str:
            split, row = found.place(image)
            picture: Image.Image = found.source.splits()[split].open(row)
            return encode_jpeg(picture)

        atomic_write_text(folder / "report_data" / "audit.json", json.dumps(as_data(found, thumbnail)) + "\n")
    return file
