"""Whether smdebug can work here, said before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import sys

from imgcls.errors import UserError

INSTALL = "pip install 'imgcls[debugger]'"


def check_smdebug(asked: str = "debug.smdebug=true") -> None:
    """Raise UserError where smdebug, which the option `asked` needs, is missing, or Python or numpy too new for it."""
    if sys.version_info >= (3, 13):
        raise UserError(f"{asked} needs Python 3.11 or 3.12: smdebug cannot be imported by a newer one. {INSTALL}.")
    if importlib.util.find_spec("smdebug") is None:
        raise UserError(f"{asked} needs smdebug: {INSTALL}.")
    from importlib.metadata import version

    numpy = version("numpy")
    if tuple(int(part) for part in numpy.split(".")[:2]) >= (2, 3):
        raise UserError(
            f"{asked}: smdebug cannot save with numpy {numpy}, only below 2.3. {INSTALL} in an environment of its own."
        )
