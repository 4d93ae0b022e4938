"""Data sets that a process has opened stay open for its next training: the trials of a sweep read the pictures once."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls.data.module import ImageDataModule, Opened

MOST = 2  # data sets that are kept: a sweep over data.seed or data.root must not fill the memory
# Options that do not change which pictures there are; how their pixels are held is part of each store's own key.
FREE = ("batch_size", "micro_batch_size", "num_workers", "augment", "sampler", "normalization", "image_size", "resize")

_kept: OrderedDict[str, Opened] | None = None


def keep_data() -> None:
    """From now on keep what is opened, as long as the process lives."""
    global _kept
    if _kept is None:
        _kept = OrderedDict()


@contextmanager
def shared_data() -> Iterator[None]:
    """Keep what is opened until the end of the block."""
    global _kept
    before = _kept
    keep_data()
    try:
        yield
    finally:
        _kept = before


def reuse(datamodule: ImageDataModule, options: Mapping[str, Any]) -> bool:
    """Give `datamodule` what an earlier one with the same `options` has opened; whether there was one."""
    if _kept is None or (opened := _kept.get(_key(options))) is None:
        return False
    _kept.move_to_end(_key(options))
    datamodule.opened = opened
    return True


def keep(datamodule: ImageDataModule, options: Mapping[str, Any]) -> None:
    """Remember what `datamodule` has opened, where that is asked for."""
    if _kept is None:
        return
    _kept[_key(options)] = datamodule.opened
    while len(_kept) > MOST:
        _kept.popitem(last=False)


def _key(options: Mapping[str, Any]) -> str:
    told = {name: value for name, value in options.items() if name not in FREE}
    return json.dumps(told, sort_keys=True, default=str)
