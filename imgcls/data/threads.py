"""Threads for work that releases the GIL: decoding, resizing, copying."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import islice, pairwise
from typing import TypeVar

import torch

from imgcls.system.bars import with_bar

T = TypeVar("T")

CHUNKS_AHEAD = 16  # per thread, so that a slow item does not stop the others


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """The process's shared pool of `threads` threads, which start as they are needed and stay."""
    return ThreadPoolExecutor(threads, thread_name_prefix="imgcls-pool")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)  # a forked process inherits the pool, but not its threads


def in_slices(work: Callable[[slice], object], count: int, min_length: int = 1) -> None:
    """Call work(slice) for consecutive slices of 0..count, in as many threads as torch uses.

    Slices have at least `min_length` items. Must not be called from a thread of the pool, which would wait for itself.
    """
    parts = max(1, min(torch.get_num_threads(), count // min_length))
    cuts = [part * count // parts for part in range(parts + 1)]
    if parts == 1:
        work(slice(0, count))
        return
    for future in [pool(parts).submit(work, slice(*pair)) for pair in pairwise(cuts)]:
        future.result()


def map_with_bar(
    work: Callable[[int], T], items: Iterable[int], threads: int, title: str, count: int | None = None
) -> Iterator[T]:
    """work(item) for each item, in order, in `threads` threads of its own, with a progress bar on a terminal.

    An error, or closing the generator, cancels the items that have not been started. Where `items` is no sequence,
    `count` is how many there are, at most, and they are taken as they are needed.
    """
    count = len(items) if isinstance(items, Sequence) else count or 0
    size = max(1, min(32, count // (4 * threads)))  # one task for several items, but several tasks per thread
    executor = ThreadPoolExecutor(threads, thread_name_prefix="imgcls-map")
    try:
        yield from with_bar(_in_order(executor, work, iter(items), size, threads), count, title)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _in_order(
    executor: ThreadPoolExecutor, work: Callable[[int], T], items: Iterator[int], size: int, threads: int
) -> Iterator[T]:
    """The results of `items`, of which a bounded number is submitted ahead: a future takes 2 kB."""
    pending: deque[Future[list[T]]] = deque()
    while chunk := list(islice(items, size)):
        pending.append(executor.submit(lambda chunk: [work(item) for item in chunk], chunk))
        if len(pending) >= CHUNKS_AHEAD * threads:
            yield from pending.popleft().result()
    while pending:
        yield from pending.popleft().result()
