"""The folder for what can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads and stores are kept: $IMGCLS_CACHE, or imgcls in $XDG_CACHE_HOME, or in ~/.cache."""
    if own := os.environ.get("IMGCLS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imgcls"
