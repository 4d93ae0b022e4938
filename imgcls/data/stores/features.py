"""What a frozen backbone says of every picture, computed once and found again by every run that wants the same."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imgcls.data.stores.disk import reserve
from imgcls.system.cache import alone

log = logging.getLogger(__name__)

FEATURES, DESCRIPTION = "features.npy", "features.json"
DISK_SHARE = 0.8


class FeatureStore:
    """Features of the pictures of one split.

    Args:
        features: float32 (V, N, F): V views of each picture, one after the other.
    """

    def __init__(self, features: np.ndarray) -> None:
        self.features = features

    def __len__(self) -> int:
        return int(self.features.shape[1])

    @property
    def views(self) -> int:
        """V."""
        return int(self.features.shape[0])

    def gather(self, positions: Tensor, epoch: int = 0) -> Tensor:
        """float32 (n, F): the pictures at `positions`, int64 (n,), in the view whose turn it is in `epoch`."""
        return torch.from_numpy(self.features[epoch % self.views][positions.numpy()])


def open_features(folder: Path, shape: tuple[int, int, int]) -> FeatureStore | None:
    """The features in `folder`; None where there are none, or not of this shape (V, N, F)."""
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
        features = np.load(folder / FEATURES, mmap_mode="r")
        os.utime(folder / DESCRIPTION)  # when it was last used, for whoever clears the cache
    except (OSError, ValueError):
        return None
    if described.get("shape") != list(shape) or features.shape != shape or features.dtype != np.float32:
        return None
    return FeatureStore(features)


def build_features(folder: Path, shape: tuple[int, int, int], parts: Iterable[np.ndarray]) -> FeatureStore:
    """Open the features in `folder`, computing them first where need be.

    Of several processes one computes and the others wait. What is written gets its name when it is whole, so a kill
    leaves nothing that is taken for features; where the disk is too small they stay in memory.

    Args:
        folder: named after all that the features depend on.
        shape: (V, N, F).
        parts: float32 (n, F), view after view, in order; only asked for where there is something to compute.
    """
    with alone(folder):
        found = open_features(folder, shape)
        if found is not None:
            return found
        size = 4 * shape[0] * shape[1] * shape[2]
        if size > DISK_SHARE * shutil.disk_usage(folder.parent).free:
            log.warning("Features need %.1f MB, too much for the disk of %s: kept in memory.", size / 1e6, folder)
            return FeatureStore(_fill(np.empty(shape, dtype=np.float32), parts))
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        partial.mkdir()
        try:
            target = np.lib.format.open_memmap(partial / FEATURES, mode="w+", dtype=np.float32, shape=shape)
            reserve(partial / FEATURES)
            _fill(target, parts)
            target.flush()
            (partial / DESCRIPTION).write_text(json.dumps({"shape": list(shape)}))
            shutil.rmtree(folder, ignore_errors=True)  # one that is not whole
            partial.replace(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        found = open_features(folder, shape)
    if found is None:
        raise OSError(f"the features in {folder} cannot be read back")
    return found


def _fill(target: np.ndarray, parts: Iterable[np.ndarray]) -> np.ndarray:
    rows, begin = target.reshape(-1, target.shape[2]), 0
    for part in parts:
        rows[begin : begin + len(part)] = part
        begin += len(part)
    if begin != len(rows):
        raise ValueError(f"{begin} features for {len(rows)} places")
    return target
