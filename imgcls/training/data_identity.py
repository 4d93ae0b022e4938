"""The images a run began with, so that it is not resumed with others: `data.json` in the run folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.module import ImageDataModule
from imgcls.data.sources import Split
from imgcls.data.stores.fingerprint import fingerprint
from imgcls.errors import UserError
from imgcls.system.files import atomic_write_text

FILE = "data.json"
ADVICE = "Restore them, or choose another run_dir."


def record_data(folder: Path, images: ImageDataModule) -> None:
    """Write the class names and the fingerprints of splits and teacher, unless the run folder already holds them."""
    if not (folder / FILE).is_file():
        atomic_write_text(folder / FILE, json.dumps(_identity(images), indent=2) + "\n")


def check_data(folder: Path, images: ImageDataModule) -> None:
    """Raise UserError if the classes or the images differ from those the run in `folder` began with."""
    try:
        before = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return  # a run of an earlier version
    now = _identity(images)
    if before["class_names"] != now["class_names"]:
        removed = [name for name in before["class_names"] if name not in now["class_names"]]
        added = [name for name in now["class_names"] if name not in before["class_names"]]
        names = {"removed": removed, "new": added}
        changes = "; ".join(f"{', '.join(map(repr, some[:3]))} {kind}" for kind, some in names.items() if some)
        raise UserError(f"{folder} holds a run with other classes ({changes or 'in another order'}). {ADVICE}")
    if before.get("teacher") != now["teacher"]:
        raise UserError(f"{folder} holds a run whose loss.teacher was another model. {ADVICE}")
    for split, digest in before.get("labels", {}).items():
        if digest != now["labels"].get(split):
            raise UserError(f"{folder} holds a run in which {split} images had other labels or weights. {ADVICE}")
    for split, (count, digest) in before["splits"].items():
        if [count, digest] != now["splits"].get(split):
            now_count = now["splits"].get(split, [0])[0]
            raise UserError(
                f"{folder} holds a run with other {split} images than those in {images.root or 'this data set'} "
                f"({count} then, {now_count} now). {ADVICE}"
            )


def read_identity(folder: Path) -> dict[str, Any]:
    """The class names, and the count and fingerprint of each split, that the run in `folder` began with.

    Raises UserError for a run of an earlier version, which has not recorded them.
    """
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} has no {FILE}: it was trained by an earlier version of imgcls.")
    identity: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return identity


def _identity(images: ImageDataModule) -> dict[str, Any]:
    splits = images.source.splits()
    fingerprints = {name: [len(split), fingerprint(split, images.cache)] for name, split in splits.items()}
    labels = {name: _labels_digest(split) for name, split in splits.items()}
    teacher = images.teacher.key if images.teacher is not None else None
    return {"class_names": list(images.class_names), "splits": fingerprints, "labels": labels, "teacher": teacher}


def _labels_digest(split: Split) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(split.labels).data, digest_size=16)
    if split.weights is not None:
        digest.update(np.ascontiguousarray(split.weights).data)
    return digest.hexdigest()
