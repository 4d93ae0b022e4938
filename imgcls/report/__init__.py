"""The report of a run: one self-contained page, and its figures as files.

May be imported by `training` and everything above; imports `debug`, `data`, `runs` and everything below.
"""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` of the run in `folder`; return the page's path."""
    from imgcls.report.page import write_report as write

    return write(folder)


def try_report(folder: Path) -> None:
    """Write the report at the end of a training, which must not fail because of it."""
    try:
        write_report(folder)
    except Exception:
        log.warning(
            "The report could not be written. To try again: python -m imgcls.report run=%s", folder, exc_info=True
        )
