"""`python -m imgcls.report run=DIR`: make a run's report again; with several runs, compare them.

usage: python -m imgcls.report run=DIR
       python -m imgcls.report run=DIR run=DIR … [output=comparison.html]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from imgcls.cli import guarded, parse_arguments
from imgcls.errors import UserError


def report(arguments: Sequence[str]) -> None:
    """Write the report of the run, or the comparison of the runs, that `arguments` name, and say where it is."""
    from imgcls.runs import load

    named = [word.partition("=")[2] for word in arguments if word.startswith("run=")]
    options, _, rest = parse_arguments(arguments, {"run": "", "output": ""}, usage=__doc__ or "")
    if not options["run"] or rest:
        raise UserError(f"What is {rest[0]!r}?" if rest else "Which run? Give its folder: run=DIR")
    folders = [load(name).folder for name in dict.fromkeys(named)]
    if len(folders) == 1:
        if options["output"]:
            raise UserError("output= is for the comparison of several runs; a run's report is in its folder.")
        from imgcls.report.page import write_report

        print(write_report(folders[0]))
        return
    from imgcls.report.comparison import write_comparison

    print(write_comparison(folders, Path(options["output"] or "comparison.html").expanduser()))


if __name__ == "__main__":
    sys.exit(guarded(lambda: report(sys.argv[1:])))
