"""From folder names to the names that a person reads."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"^(?:\d+[.\-_ ]+|n\d{8}[.\-_ ]+)(?=\D)")
_CALTECH_101 = re.compile(r"-101$")


def readable(folder: str) -> str:
    """The class that a folder name stands for: without its number, underscores as spaces.

    >>> [readable(name) for name in ("002.Afghan_hound", "n02085620-Chihuahua", "127.laptop-101", "coffee-mug", "7")]
    ['Afghan hound', 'Chihuahua', 'laptop', 'coffee-mug', '7']
    """
    name = _NUMBER.sub("", folder.strip())
    if name != folder.strip():
        name = _CALTECH_101.sub("", name)
    return " ".join(name.replace("_", " ").split()) or folder


def readable_names(folders: Sequence[str]) -> tuple[str, ...]:
    """The classes of `folders`, in their order; the folder names themselves where two would become the same."""
    names = [readable(folder) for folder in folders]
    return tuple(names) if len(set(names)) == len(names) else tuple(folders)
