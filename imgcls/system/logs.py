"""Who hears what imgcls, Lightning and Python's warnings say: the terminal, a log file, nobody."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from imgcls.system.files import explain_os_errors


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """What imgcls says while it works goes to stderr, a line each; Lightning and Python's warnings are not heard."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handlers: dict[str, list[logging.Handler]] = {"imgcls": [handler]}
    handlers |= {name: [logging.NullHandler()] for name in ("lightning.pytorch", "lightning.fabric", "py.warnings")}
    with handled_by(handlers):
        yield


@contextlib.contextmanager
def handled_by(handlers: Mapping[str, list[logging.Handler]], onward: Sequence[str] = ()) -> Iterator[None]:
    """Each logger that is named has these handlers alone, warnings are logged too; those of `onward` also propagate."""
    loggers = {name: logging.getLogger(name) for name in handlers}
    before = {name: (one.handlers, one.level, one.propagate) for name, one in loggers.items()}
    for name, one in loggers.items():
        one.handlers, one.propagate = handlers[name], name in onward
        one.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for name, one in loggers.items():
            one.handlers, one.level, one.propagate = before[name]


class _QuietFileHandler(logging.FileHandler):
    """A log that cannot be written (a full disk) must not bury the message that says so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


@contextlib.contextmanager
def logging_to(file: Path, *, terminal: bool = True) -> Iterator[None]:
    """Send what imgcls and Lightning say to `file`, and imgcls's own messages also to stderr."""
    with explain_os_errors(file):
        to_file = _QuietFileHandler(file, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(logging.Formatter("%(message)s"))
    handlers: dict[str, list[logging.Handler]] = {
        "imgcls": [to_file, *([to_terminal] if terminal else [])],
        "lightning": [to_file],
        "lightning.pytorch": [],
        "lightning.fabric": [],
        "py.warnings": [to_file],
    }
    try:
        with handled_by(handlers, onward=("lightning.pytorch", "lightning.fabric")):
            yield
    finally:
        to_file.close()
