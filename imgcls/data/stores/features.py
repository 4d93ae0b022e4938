"""The features of a frozen backbone, computed once and found by every later run that needs the same ones."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from imgcls.data.stores.checksums import Checker, checksums
from imgcls.data.stores.disk import reserve
from imgcls.data.stores.readahead import read_ahead
from imgcls.system.cache import find_or_build, hold
from imgcls.system.machine import DISK_SHARE, spare_disk

log = logging.getLogger(__name__)

FEATURES, DESCRIPTION = "features.npy", "features.json"


class FeatureStore:
    """Features of the images of one split, float32 (V, N, F), of V views of each image.

    `held` is kept open as long as they are used, see `imgcls.system.cache.hold`. With `places`, int64 (n,), the split
    is the images at these positions.
    """

    def __init__(self, features: np.ndarray, held: IO[bytes] | None = None, places: np.ndarray | None = None) -> None:
        self._features, self._held, self._places = features, held, places

    def __len__(self) -> int:
        return int(self._features.shape[1]) if self._places is None else len(self._places)

    @property
    def features(self) -> np.ndarray:
        """The features as an array, float32 (V, N, F): mapped from the disk, or of a part of the images a copy."""
        return self._features if self._places is None else self._features[:, self._places]

    def part(self, places: np.ndarray) -> FeatureStore:
        """The features of the images at `places`, int64 (n,), without a copy."""
        return FeatureStore(self._features, self._held, places if self._places is None else self._places[places])

    @property
    def views(self) -> int:
        """Number of views, V."""
        return int(self._features.shape[0])

    def gather(self, positions: Tensor, epoch: int = 0) -> Tensor:
        """float32 (n, F) of the images at `positions`, int64 (n,); `epoch` selects one of the views in turn."""
        features, rows = self._features[epoch % self.views], positions.numpy()
        if self._places is not None:
            rows = self._places[rows]
        read_ahead(features, rows)
        return torch.from_numpy(features[rows])


def open_features(folder: Path, shape: tuple[int, int, int]) -> FeatureStore | None:
    """The features in `folder`; None if they are missing or not of this shape (V, N, F)."""
    try:
        held = hold(folder / DESCRIPTION)
        description = json.loads((folder / DESCRIPTION).read_text())
        features = np.load(folder / FEATURES, mmap_mode="r")
        if description["shape"] != list(shape) or features.shape != shape or features.dtype != np.float32:
            return None
        if not Checker(folder / FEATURES, description["checksums"]).is_sound():
            return None
    except Exception:  # whatever is wrong with them, they can be computed again
        return None
    return FeatureStore(features, held)


def build_features(
    folder: Path, shape: tuple[int, int, int], parts: Callable[[], Iterable[np.ndarray]]
) -> FeatureStore:
    """Open the features in `folder`, and compute them first if they are missing; in memory if the disk is too small.

    Args:
        folder: named after everything that the features depend on.
        shape: (V, N, F).
        parts: computes the features, float32 (n, F), in order, view after view; only called if they are missing, and
            again if the disk fails meanwhile.
    """
    size = 4 * shape[0] * shape[1] * shape[2]

    def build(partial: Path) -> None:
        if size > DISK_SHARE * spare_disk(partial):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        target = np.lib.format.open_memmap(partial / FEATURES, mode="w+", dtype=np.float32, shape=shape)
        reserve(partial / FEATURES)
        _fill(target, parts())
        target.flush()
        description = {"shape": list(shape), "checksums": checksums(partial / FEATURES)}
        (partial / DESCRIPTION).write_text(json.dumps(description))

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder.parent))
        return find_or_build(folder, lambda: open_features(folder, shape), build)
    except OSError as error:
        log.warning("The %.1f MB of features cannot be stored (%s): kept in memory.", size / 1e6, error)
    return FeatureStore(_fill(np.empty(shape, dtype=np.float32), parts()))


def _fill(target: np.ndarray, parts: Iterable[np.ndarray]) -> np.ndarray:
    rows, count = target.reshape(-1, target.shape[2]), 0
    for part in parts:
        rows[count : count + len(part)] = part
        count += len(part)
    if count != len(rows):
        raise ValueError(f"{count} features for {len(rows)} rows")
    return target
