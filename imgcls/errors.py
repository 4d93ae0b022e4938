"""The one exception for what a user can fix, and suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
