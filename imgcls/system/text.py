"""Text for people: what others wrote, such as names of classes and files; amounts; durations."""

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


def format_bytes(size: float) -> str:
    """`size` bytes with a decimal unit.

    >>> format_bytes(1_500_000_000), format_bytes(20)
    ('1.5 GB', '20 bytes')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"


def duration(seconds: float) -> str:
    """`seconds` for people.

    >>> duration(0.123), duration(42), duration(150), duration(7500)
    ('0.12 s', '42 s', '2 min 30 s', '2 h 5 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if seconds >= 10 else f"{seconds:.2g} s"
