"""How busy the device was in some steps, and how often the host waited for it, from torch.profiler's events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls by which the host waits for a CUDA device; a copy that does not wait is a cudaMemcpyAsync."""


def device_use(events: Iterable[Any], window: str) -> dict[str, Any] | None:
    """What the device did while the events of the name `window` lasted; None where it did nothing that is known of.

    Args:
        events: of `torch.profiler.profile.events()`.
        window: the name of a `record_function` around the steps.

    Returns:
        `idle_share`, 0 to 1: of the time from the first to the last piece of the device's work, how much none was done.
        `milliseconds`: that time. `waits`: how often the host called each function of `WAITS` within the window.
    """
    events = list(events)
    inside = [
        (one.time_range.start, one.time_range.end) for one in events if one.name == window and not _on_device(one)
    ]
    work = [(one.time_range.start, one.time_range.end) for one in events if _on_device(one) and one.name != window]
    if not inside or not work:
        return None
    start, end = min(first for first, _ in inside), max(last for _, last in inside)
    waits = Counter(one.name for one in events if one.name in WAITS and start <= one.time_range.start <= end)
    whole = max(last for _, last in work) - min(first for first, _ in work)
    share = 1 - covered(work) / whole if whole else 0.0
    return {"idle_share": round(share, 4), "milliseconds": round(whole / 1000, 3), "waits": dict(waits)}


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


def _on_device(event: Any) -> bool:
    return str(event.device_type).rpartition(".")[2] != "CPU"
