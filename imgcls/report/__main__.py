"""`python -m imgcls.report run=DIR`: make a run's report again; with several runs, compare them.

usage: python -m imgcls.report run=DIR [debug.rules.NAME.parameter=value …]
       python -m imgcls.report run=DIR run=DIR … [output=comparison.html]
       python -m imgcls.report trial=DIR [debug.rules.NAME.parameter=value …] [output=trial.html]
       python -m imgcls.report profile=DIR [debug.profile_rules.NAME.parameter=value …] [output=profile.html]

With a threshold, the rules look again at what was recorded of the run. `trial` is an smdebug trial that someone else
recorded (a folder, or an s3:// address), `profile` the profiler output of a SageMaker job.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls.cli import Option, guarded, read_options
from imgcls.errors import UserError

if TYPE_CHECKING:
    from imgcls.debug.rules import Outcome

OPTIONS = {name: Option() for name in ("run", "trial", "profile", "output")}


def report(arguments: Sequence[str]) -> None:
    """Write the page that `arguments` ask for, and say where it is."""
    options, overrides, _ = read_options(arguments, OPTIONS, usage=__doc__ or "", overrides=["debug."])
    given = [name for name in ("run", "trial", "profile") if options[name] is not None]
    if len(given) != 1:
        raise UserError("Give what to report on: run=DIR, or trial=DIR or profile=DIR alone.")
    output = Path(options["output"] or {"run": "comparison.html"}.get(given[0], f"{given[0]}.html")).expanduser()
    if given[0] == "run":
        named = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
        _report_runs(named, overrides, output)
        return
    from imgcls.report.foreign import write_profile_page, write_trial_page

    write = write_trial_page if given[0] == "trial" else write_profile_page
    _print(write(options[given[0]], overrides, output))
    print(output)


def _report_runs(named: Sequence[str], overrides: Sequence[str], output: Path) -> None:
    from imgcls.runs.run import load

    folders = [load(name).folder for name in dict.fromkeys(named)]
    if len(folders) > 1:
        if overrides:
            raise UserError(f"{overrides[0]}: the rules look again at one run at a time.")
        from imgcls.report.comparison import write_comparison

        print(write_comparison(folders, output))
        return
    if output != Path("comparison.html"):
        raise UserError("output= is for the comparison of several runs; a run's report is in its folder.")
    if overrides:
        from imgcls.debug.recheck import recheck

        _print(recheck(folders[0], overrides))
    from imgcls.report.page import write_report

    print(write_report(folders[0]))


def _print(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        print(f"{outcome.rule:26} {outcome.status:15} {outcome.sentence}".rstrip())


if __name__ == "__main__":
    sys.exit(guarded(lambda: report(sys.argv[1:])))
