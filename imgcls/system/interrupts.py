"""SIGTERM and Ctrl-C end a run after its current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

RESUME_ADVICE = "Run the same command again to resume."


class Interrupted(Exception):  # noqa: N818 - the field says "interrupted", and it is not an error of the program
    """A signal asked the run to stop; the same command resumes it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum, self.exit_code = signum, 128 + signum
        self.advice = RESUME_ADVICE

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return type(self), (self.signum,)  # for a job in another process


class StopSignals:
    """While active, SIGTERM and SIGINT raise Interrupted: at once, or while `deferred` at the next check.

    Training sets `deferred` and checks at the end of each step, so that it can write a checkpoint first. A second
    signal is never deferred. Only the main thread can install signal handlers; elsewhere nothing is changed.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.requested: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.install()
        ACTIVE.append(self)
        return self

    def install(self) -> None:
        """Install the handlers, again where Lightning has replaced them."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                current = signal.signal(signum, self._handle)
                self._previous.setdefault(signum, current)

    def raise_if_requested(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        repeated, self.requested = self.requested is not None, signum
        if repeated or not self.deferred:
            raise Interrupted(signum)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ACTIVE.remove(self)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}


ACTIVE: list[StopSignals] = []


def raise_if_requested() -> None:
    """Raise Interrupted if the exception of a signal was lost: botocore mistakes it for a network error."""
    for signals in ACTIVE:
        signals.raise_if_requested()
