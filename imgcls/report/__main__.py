"""`python -m imgcls.report run=DIR`: create a run's report again, or compare several runs.

usage: python -m imgcls.report run=DIR [debug.rules.NAME.parameter=value …]
       python -m imgcls.report run=DIR run=DIR … [output=comparison.html]
       python -m imgcls.report trial=DIR [debug.rules.NAME.parameter=value …] [output=trial.html]
       python -m imgcls.report profile=DIR [debug.profile_rules.NAME.parameter=value …] [output=profile.html]

With a threshold, the rules are checked again on the record of the run. `trial` is an smdebug trial recorded elsewhere
(a folder or an s3:// address), `profile` the profiler output of a SageMaker job.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls.cli import Option, read_options, run_command
from imgcls.errors import UserError

if TYPE_CHECKING:
    from imgcls.debug.rules import Outcome

OPTIONS = {name: Option() for name in ("run", "trial", "profile", "output")}


def report(arguments: Sequence[str]) -> None:
    """Write the page that `arguments` ask for, and print its path."""
    options, overrides, _ = read_options(arguments, OPTIONS, usage=__doc__ or "", overrides=["debug."])
    kinds = [name for name in ("run", "trial", "profile") if options[name] is not None]
    if len(kinds) != 1:
        raise UserError("Give the folder to report on: run=DIR, or one trial=DIR, or one profile=DIR.")
    [kind] = kinds
    output = Path(options["output"] or f"{'comparison' if kind == 'run' else kind}.html").expanduser()
    if kind == "run":
        runs = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
        _report_runs(runs, overrides, output)
        return
    from imgcls.report.foreign import write_profile_page, write_trial_page

    write = write_trial_page if kind == "trial" else write_profile_page
    _print_outcomes(write(options[kind], overrides, output))
    print(output)


def _report_runs(runs: Sequence[str], overrides: Sequence[str], output: Path) -> None:
    from imgcls.runs.run import load

    folders = [load(run).folder for run in dict.fromkeys(runs)]
    if len(folders) > 1:
        if overrides:
            raise UserError(f"{overrides[0]}: rules can be checked again on one run at a time.")
        from imgcls.report.comparison import write_comparison

        print(write_comparison(folders, output))
        return
    if output != Path("comparison.html"):
        raise UserError("output= needs several runs to compare; the report of a single run is in its folder.")
    if overrides:
        from imgcls.debug.recheck import recheck

        _print_outcomes(recheck(folders[0], overrides))
    from imgcls.report.page import write_report

    print(write_report(folders[0]))


def _print_outcomes(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        print(f"{outcome.rule:26} {outcome.status:15} {outcome.sentence}".rstrip())


def main() -> None:
    """Run the command line."""
    run_command(lambda: report(sys.argv[1:]))


if __name__ == "__main__":
    main()
