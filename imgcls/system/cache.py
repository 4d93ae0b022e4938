"""The folder for what can be made or fetched again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgcls.system.files import explain_os_errors

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where downloads and stores are kept: $IMGCLS_CACHE, or imgcls in $XDG_CACHE_HOME, or in ~/.cache."""
    if own := os.environ.get("IMGCLS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imgcls"


def data_folder(class_name: str) -> Path:
    """Where a data set is kept that was downloaded by the data module `class_name`."""
    return cache_folder() / "data" / class_name.lower()


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Wait until no other process is making `target`; a process that is killed holds up nobody."""
    lock = target.with_name(f".{target.name}.lock")
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("Another process is making %s; waiting for it.", target)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
