"""The one exception for what a user can fix, suggestions for misspelt names, and errors in the user's own code."""

from __future__ import annotations

import difflib
import functools
import site
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType


class UserError(Exception):
    """Something the user can fix: one or two lines that say what is wrong, where, and what to do.

    Commands print it without a traceback and exit with code 2.
    """

    exit_code = 2


def nearest(name: str, names: Iterable[str], limit: int = 12) -> str:
    """The hint after an unknown `name`: the most similar of the valid `names`, or the first `limit` of them.

    >>> nearest("resnet19", ["resnet18", "resnet50"])
    'Did you mean resnet18 or resnet50?'
    >>> nearest("zebra", ["cat", "dog"])
    'Choose one of: cat, dog.'
    """
    names = sorted(set(names))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if not names:
        return ""
    rest = f", … ({len(names) - limit} more)" if len(names) > limit else ""
    return f"Choose one of: {', '.join(names[:limit])}{rest}."


def first_line(error: BaseException) -> str:
    """The first line of the message of `error`, up to 160 characters; the name of its class if it has no message.

    >>> first_line(ValueError("one\\ntwo")), first_line(ValueError())
    ('one', 'ValueError')
    """
    return str(error).strip().partition("\n")[0].strip()[:160] or type(error).__name__


def users_frames(error: BaseException) -> TracebackType | None:
    """The traceback of `error` from the user's own code on; None if no code of the user's was running.

    Their code is in a file that belongs neither to imgcls nor to Python and its installed packages.
    """
    frame = error.__traceback__
    while frame is not None:
        if is_users_file(frame.tb_frame.f_code.co_filename):
            return frame
        frame = frame.tb_next
    return None


def describe_users_error(error: BaseException) -> tuple[str, str] | None:
    """The traceback of an error in the user's own code, from their file on, and a line about it; None for any other."""
    frames = users_frames(error)
    if frames is None:
        return None
    text = "".join(traceback.format_exception(type(error), error, frames))
    place = f"{frames.tb_frame.f_code.co_filename}, line {frames.tb_lineno}"
    return text, f"{type(error).__name__} in your own code: {place}. The lines above start there."


_PACKAGE = Path(__file__).resolve().parent


def is_users_file(file: str) -> bool:
    """Whether `file` exists and belongs neither to imgcls nor to Python and its installed packages."""
    path = Path(file).resolve()
    installed = bool({"site-packages", "dist-packages"} & set(path.parts)) or any(
        path.is_relative_to(folder) for folder in (_PACKAGE, *_library_folders())
    )
    return path.is_file() and not installed


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    """The folders of Python's library and of installed packages, and that of Hydra's plugins beside imgcls."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [*(sysconfig.get_path(name) for name in names), *site.getsitepackages(), site.getusersitepackages()]
    return (*(Path(folder).resolve() for folder in folders), _PACKAGE.parent / "hydra_plugins")
