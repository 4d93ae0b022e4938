"""Data sets that a process has opened stay open for its next training: the trials of a sweep read the pictures once."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls.data.module import Opened

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


def recall(options: Mapping[str, Any]) -> Opened | None:
    """What a data module with the same `options` has opened before, where that is kept."""
    if _kept is None or (key := _key(options)) not in _kept:
        return None
    _kept.move_to_end(key)
    return _kept[key]


def remember(opened: Opened, options: Mapping[str, Any]) -> None:
    """Keep what a data module with these `options` has opened, where that is asked for."""
    if _kept is None:
        return
    _kept[_key(options)] = opened
    while len(_kept) > MOST:
        _kept.popitem(last=False)


def _key(options: Mapping[str, Any]) -> str:
    decisive = {name: value for name, value in options.items() if name not in FREE}
    return json.dumps(decisive, sort_keys=True, default=str)
