"""Something is done again and again while a block runs, and no more."""

from __future__ import annotations

import threading

from imgcls.system.background import repeat


def test_it_is_done_until_the_block_ends() -> None:
    often, calls = threading.Event(), []

    def do() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            often.set()

    with repeat(do, 0.001, "test"):
        assert often.wait(60)
    assert set(calls) == {"test"}
    assert "test" not in {thread.name for thread in threading.enumerate()}


def test_true_ends_it() -> None:
    called, calls = threading.Event(), []

    def do() -> bool:
        calls.append(1)
        called.set()
        return True

    with repeat(do, 0.001, "test"):
        assert called.wait(60)
        for thread in threading.enumerate():
            if thread.name == "test":
                thread.join(60)
    assert len(calls) == 1
