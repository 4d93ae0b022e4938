"""Notices while it happens that a training makes no progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class StallWatch(threading.Thread):
    """Calls `on_stall` once from this thread whenever `alive` has not been called for `seconds`.

    A step that waits forever never reaches the rules, which run after steps.

    Args:
        seconds: the longest time between two calls of `alive`.
        on_stall: is given the step of the last call and the seconds since.
    """

    def __init__(self, seconds: float, on_stall: Callable[[int, float], None]) -> None:
        super().__init__(name="imgcls-stalls", daemon=True)
        self.seconds, self._on_stall = seconds, on_stall
        self._ended = threading.Event()
        self._last = (time.monotonic(), 0)

    def alive(self, step: int) -> None:
        """The training is running, at `step`."""
        self._last = (time.monotonic(), step)

    def run(self) -> None:
        """Watch until `end`."""
        reported = None
        while True:
            last = self._last
            silent = time.monotonic() - last[0]
            if silent > self.seconds and reported != last:
                reported = last
                self._on_stall(last[1], silent)
            due = self.seconds - silent if reported != last else self.seconds
            if self._ended.wait(min(max(due, 0.01), 60.0)):
                return

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        if threading.current_thread() is not self and self.is_alive():
            self.join(timeout=10)
