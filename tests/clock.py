"""Time that a test puts forward, instead of waiting for it."""

from __future__ import annotations

import time


class Clock:
    """Takes the place of the module `time` where a module measures: the host's time, and `ahead` seconds more."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def time(self) -> float:
        return time.time() + self.ahead
