"""Something that a thread repeats while a block runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def repeat(do: Callable[[], bool | None], seconds: float, name: str) -> Iterator[None]:
    """Call `do` every `seconds` while the block runs, the first time after the first interval.

    Args:
        do: must not raise; the thread ends when it returns True.
        seconds: between the end of one call and the start of the next.
        name: of the thread.
    """
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(seconds) and not do():
            pass

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
