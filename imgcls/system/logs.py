"""Where the messages of imgcls, Lightning and Python's warnings go: the terminal, a log file, nowhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from imgcls.system.files import explain_os_errors
from imgcls.system.notebook import in_notebook
from imgcls.system.text import printable

LIGHTNING = ("lightning.pytorch", "lightning.fabric")


class _TerminalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _terminal_handler() -> logging.Handler:
    """Writes to stderr; in a notebook, which shows that in red, to stdout."""
    handler = logging.StreamHandler(sys.stdout if in_notebook() else sys.stderr)
    handler.setFormatter(_TerminalFormatter("%(message)s"))
    return handler


@contextlib.contextmanager
def log_to_terminal() -> Iterator[None]:
    """Send imgcls's messages to the terminal, a line each, and silence Lightning and Python's warnings."""
    handler = _terminal_handler()
    handlers: dict[str, list[logging.Handler]] = {"imgcls": [handler]}
    handlers |= {name: [logging.NullHandler()] for name in (*LIGHTNING, "py.warnings")}
    with replace_handlers(handlers):
        yield


@contextlib.contextmanager
def without_lightning_messages() -> Iterator[None]:
    """Silence Lightning and Python's warnings, for functions that are called from Python."""
    import lightning  # noqa: F401 - sets up its loggers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _handlers_of({name: [logging.NullHandler()] for name in LIGHTNING}):
            yield


@contextlib.contextmanager
def replace_handlers(handlers: Mapping[str, list[logging.Handler]], onward: Sequence[str] = ()) -> Iterator[None]:
    """Give each named logger only these `handlers`, and log warnings; the loggers in `onward` also propagate."""
    logging.captureWarnings(True)
    try:
        with _handlers_of(handlers, onward):
            yield
    finally:
        logging.captureWarnings(False)


@contextlib.contextmanager
def _handlers_of(handlers: Mapping[str, list[logging.Handler]], onward: Sequence[str] = ()) -> Iterator[None]:
    loggers = {name: logging.getLogger(name) for name in handlers}
    before = {name: (logger.handlers, logger.level, logger.propagate) for name, logger in loggers.items()}
    for name, logger in loggers.items():
        logger.handlers, logger.propagate = handlers[name], name in onward
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.handlers, logger.level, logger.propagate = before[name]


class _QuietFileHandler(logging.FileHandler):
    """Ignores its own errors: on a full disk they would bury the message that says so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


@contextlib.contextmanager
def log_to_file(file: Path, *, terminal: bool = True) -> Iterator[None]:
    """Send the messages of imgcls and Lightning to `file`, and imgcls's also to the terminal if `terminal`."""
    with explain_os_errors(file):
        to_file = _QuietFileHandler(file, encoding="utf-8")
    to_file.addFilter(lambda record: not str(record.msg).startswith("💡"))  # advertisements of Lightning
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_terminal = _terminal_handler()
    handlers: dict[str, list[logging.Handler]] = {
        "imgcls": [to_file, *([to_terminal] if terminal else [])],
        "lightning": [to_file],
        "lightning.pytorch": [],
        "lightning.fabric": [],
        "py.warnings": [to_file],
    }
    try:
        with replace_handlers(handlers, onward=("lightning.pytorch", "lightning.fabric")):
            yield
    finally:
        to_file.close()
