"""Keep opened data sets for the next training of the process, so that the trials of a sweep read the images once."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls.data.module import Opened

MAX_DATA_SETS = 2  # a sweep over data.seed or data.root must not fill the memory
# Options that do not change the images; how their pixels are stored is part of each store's own key.
FREE = (
    *("order_seed", "batch_size", "micro_batch_size", "num_workers", "augment", "sampler", "normalization"),
    *("image_size", "resize", "fit", "pad_colour"),
)

_shared: OrderedDict[str, Opened] | None = None


def keep_data() -> None:
    """Keep data sets opened from now on until the process ends."""
    global _shared
    if _shared is None:
        _shared = OrderedDict()


@contextmanager
def shared_data() -> Iterator[None]:
    """Keep data sets opened within the block until its end."""
    global _shared
    before = _shared
    keep_data()
    try:
        yield
    finally:
        _shared = before


def recall(options: Mapping[str, Any]) -> Opened | None:
    """What an earlier data module with the same `options` has opened; None if it is not kept."""
    if _shared is None or (key := _key(options)) not in _shared:
        return None
    _shared.move_to_end(key)
    return _shared[key]


def remember(opened: Opened, options: Mapping[str, Any]) -> None:
    """Keep what a data module with these `options` has opened, if sharing is on."""
    if _shared is None:
        return
    _shared[_key(options)] = opened
    while len(_shared) > MAX_DATA_SETS:
        _shared.popitem(last=False)


def _key(options: Mapping[str, Any]) -> str:
    decisive = {name: value for name, value in options.items() if name not in FREE}
    return json.dumps(decisive, sort_keys=True, default=str)
