"""`python -m imgcls.report run=DIR`: make a run's report again.

usage: python -m imgcls.report run=DIR
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imgcls.cli import guarded, parse_arguments
from imgcls.errors import UserError
from imgcls.report.page import write_report


def report(arguments: Sequence[str]) -> None:
    """Write the report of the run that `arguments` name, and say where it is."""
    from imgcls.runs import load

    options, _, rest = parse_arguments(arguments, {"run": ""}, usage=__doc__ or "")
    if not options["run"] or rest:
        raise UserError(f"What is {rest[0]!r}?" if rest else "Which run? Give its folder: run=DIR")
    print(write_report(load(options["run"]).folder))


if __name__ == "__main__":
    sys.exit(guarded(lambda: report(sys.argv[1:])))
