"""The one exception for what a user can mend, and help with misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: one or two lines that say what is wrong, where, and what to do.

    Commands print it without a traceback and end with exit code 2.
    """

    exit_code = 2


def nearest(word: str, names: Iterable[str], most: int = 12) -> str:
    """What to say after an unknown `word`: the nearest of the valid `names`, or the names themselves.

    >>> nearest("resnet19", ["resnet18", "resnet50"])
    'Did you mean resnet18 or resnet50?'
    >>> nearest("zebra", ["cat", "dog"])
    'Choose one of: cat, dog.'
    """
    names = sorted(set(names))
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if not names:
        return ""
    rest = f", … ({len(names) - most} more)" if len(names) > most else ""
    return f"Choose one of: {', '.join(names[:most])}{rest}."
