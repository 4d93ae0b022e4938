"""How busy the device was in some steps, and how often the host waited for it, from torch.profiler's events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls in which the host waits for a CUDA device; a copy that does not wait is a cudaMemcpyAsync."""


def device_use(events: Iterable[Any], window: str) -> dict[str, Any] | None:
    """What the device did during the events named `window`; None if it recorded no work.

    Args:
        events: of `torch.profiler.profile.events()`.
        window: the name of a `record_function` around the steps.

    Returns:
        `idle_share`, 0 to 1: the share of the time between the device's first and last work in which it did nothing.
        `milliseconds`: that time. `waits`: how often the host called each function of `WAITS` within the window.
    """
    events = list(events)
    host = [_span(event) for event in events if event.name == window and not _on_device(event)]
    work = [_span(event) for event in events if event.name != window and _on_device(event)]
    if not host or not work:
        return None
    start, end = min(begin for begin, _ in host), max(end for _, end in host)
    waits = Counter(event.name for event in events if event.name in WAITS and start <= event.time_range.start <= end)
    total = max(end for _, end in work) - min(begin for begin, _ in work)
    share = 1 - covered(work) / total if total else 0.0
    return {"idle_share": round(share, 4), "milliseconds": round(total / 1000, 3), "waits": dict(waits)}


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """The length of the union of `intervals`.

    >>> covered([(0, 2), (5, 6), (1, 3), (1, 2)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _span(event: Any) -> tuple[float, float]:
    return event.time_range.start, event.time_range.end


def _on_device(event: Any) -> bool:
    return str(event.device_type).rpartition(".")[2] != "CPU"
