"""Text that others wrote, such as names of classes and files, for a terminal."""

from __future__ import annotations

import re

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` without characters that control a terminal or turn the direction of writing; blanks and lines stay.

    They are replaced by JSON's escapes.

    >>> printable("cat\x1b[2J")
    'cat\\\\u001b[2J'
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
