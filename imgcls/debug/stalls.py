"""Notices that a training stands still, while it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class StallWatch(threading.Thread):
    """Calls `on_stall` once, from this thread, whenever nothing has been heard for `seconds`.

    A step that waits for ever never comes to the rules that look after steps.

    Args:
        seconds: without a sign of life.
        on_stall: is given what was said last and the seconds since.
    """

    def __init__(self, seconds: float, on_stall: Callable[[int, float], None]) -> None:
        super().__init__(name="imgcls-stalls", daemon=True)
        self.seconds, self._on_stall = seconds, on_stall
        self._ended = threading.Event()
        self._heard = (time.monotonic(), 0)

    def alive(self, step: int) -> None:
        """The training goes on, at `step`."""
        self._heard = (time.monotonic(), step)

    def run(self) -> None:
        """Watch until `end`."""
        told = None
        while True:
            heard = self._heard
            silent = time.monotonic() - heard[0]
            if silent > self.seconds and told != heard:
                told = heard
                self._on_stall(heard[1], silent)
            due = self.seconds - silent if told != heard else self.seconds
            if self._ended.wait(min(max(due, 0.01), 60.0)):
                return

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        if threading.current_thread() is not self and self.is_alive():
            self.join(timeout=10)
