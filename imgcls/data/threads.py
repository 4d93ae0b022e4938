"""Threads for work that releases Python's lock: decoding, resizing, copying."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """The one pool of so many threads in this process; its threads start as they are needed, and stay."""
    return ThreadPoolExecutor(threads, thread_name_prefix="imgcls-pool")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)  # a forked process has the pool, but not its threads


def in_slices(work: Callable[[slice], None], count: int, least: int = 1) -> None:
    """work(slice) for consecutive slices of 0..count, at least `least` long, at once in as many threads as torch uses.

    Called from within a thread of the pool it would wait for itself; nothing here does.
    """
    parts = max(1, min(torch.get_num_threads(), count // least))
    cuts = [part * count // parts for part in range(parts + 1)]
    if parts == 1:
        work(slice(0, count))
        return
    for done in [pool(parts).submit(work, slice(*pair)) for pair in pairwise(cuts)]:
        done.result()
