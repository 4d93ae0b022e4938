"""The pages of all rows of a batch are asked for before the first one is touched."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imgcls.data.stores.features import FeatureStore
from imgcls.data.stores.store import ArrayStore

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="this system has no madvise")


class Mapping(mmap.mmap):
    """Notes which bytes are asked for."""

    asked: set[int]

    def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
        assert option == mmap.MADV_WILLNEED
        assert start % mmap.PAGESIZE == 0
        self.asked |= set(range(start, start + length))
        super().madvise(option, start, length)


class Mapped(np.ndarray):
    """An array on a mapping, like numpy's own."""

    _mmap: Any

    def __array_finalize__(self, other: Any) -> None:
        self._mmap = getattr(other, "_mmap", None)


def mapped(file: Path, content: np.ndarray, header: int) -> Mapped:
    file.write_bytes(bytes(header) + content.tobytes())
    with file.open("rb") as opened:
        mapping = Mapping(opened.fileno(), 0, access=mmap.ACCESS_READ)
    mapping.asked = set()
    array = np.frombuffer(mapping, dtype=content.dtype, offset=header).reshape(content.shape).view(Mapped)
    array._mmap = mapping
    return array


@pytest.mark.parametrize("header", [0, 128])
def test_a_store_asks_for_the_rows_of_a_batch_and_no_others(tmp_path: Path, header: int) -> None:
    content = np.random.default_rng(0).integers(0, 256, (40, 50, 50, 3), dtype=np.uint8)
    pixels = mapped(tmp_path / "pixels", content, header)
    store = ArrayStore(pixels, np.ones(40, dtype=np.float32), bad=[(3, "empty file")])
    batch = store.gather(torch.tensor([30, 7, 38]))
    assert np.array_equal(batch.permute(0, 2, 3, 1).numpy(), content[[31, 8, 39]])
    size = content[0].nbytes
    needed = {byte for row in (31, 8, 39) for byte in range(header + row * size, header + (row + 1) * size)}
    assert needed <= pixels._mmap.asked
    assert len(pixels._mmap.asked) <= len(needed) + 3 * mmap.PAGESIZE


def test_features_are_asked_for_too(tmp_path: Path) -> None:
    content = np.random.default_rng(0).normal(size=(2, 500, 64)).astype(np.float32)
    features = mapped(tmp_path / "features", content, 64)
    rows = torch.tensor([499, 3])
    assert np.array_equal(FeatureStore(features).gather(rows, epoch=1).numpy(), content[1, rows])
    begin = 64 + content[0].nbytes + 499 * 256
    assert set(range(begin, begin + 256)) <= features._mmap.asked
    assert len(features._mmap.asked) < 3 * mmap.PAGESIZE
