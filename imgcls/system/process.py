"""Whether this process is a command of imgcls, and what makes its beginning and its end quick."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn


def is_command() -> bool:
    """Whether this process was started as `python -m imgcls…` or as a script of it: no test, notebook or profiler."""
    words = iter(sys.orig_argv[1:])
    for word in words:
        if word == "-m":
            return next(words, "").partition(".")[0] == "imgcls"
        if not word.startswith("-"):
            return Path(word).name in ("imgcls", "imgcls-train")
        if word == "-c":
            break
    return False


@contextmanager
def importing() -> Iterator[None]:
    """For imports of heavy packages, whose million objects stay: the collector does not go through them meanwhile.

    In a command it never does again. Elsewhere that would keep what is garbage at this moment.
    """
    enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if is_command() and len(sys.modules) > before:
            gc.freeze()
            atexit.register(gc.unfreeze)  # triton complains of what an ordinary end, without `end_process`, leaves
        if enabled:
            gc.enable()


def end_process(code: int) -> NoReturn:
    """Raise SystemExit, or, as a command that has imported torch, end at once when all threads and exit functions have.

    Otherwise the interpreter would look for garbage among a million objects of modules, for a second. mypy ends so too.
    """
    if "torch" not in sys.modules or not is_command():
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):  # closed, or without a reader; `guarded` has reported others
            stream.flush()
    os._exit(code)
