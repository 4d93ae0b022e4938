"""Pages about recordings of other programs: an smdebug trial, the profiler output of a SageMaker job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from imgcls.debug.profile import describe, read_profile
from imgcls.debug.recheck import build_rules
from imgcls.debug.rules import ISSUES, Outcome
from imgcls.debug.smdebug_trial import read_trial
from imgcls.errors import UserError
from imgcls.report import figures
from imgcls.report.blocks import Blocks, Figure
from imgcls.report.page import write_page
from imgcls.report.sections.profile import profile_blocks
from imgcls.report.sections.rules import findings


def write_trial_page(trial: str, overrides: Sequence[str], output: Path) -> list[Outcome]:
    """Check the rules, with the thresholds in `overrides`, on the smdebug `trial`; write the page `output`.

    Raises UserError if there is no trial, or no smdebug to read it.
    """
    rules = build_rules(overrides)
    record = read_trial(trial)
    outcomes = [rule.check(record) for rule in rules.values()]
    steps = figures.Steps(record.losses.numpy(), record.rates.numpy())
    sections: dict[str, Blocks] = {}
    if len(steps.loss) > 1 or record.history:
        chart = figures.learning_curves({trial: record.history}, steps)
        sections["Learning curves"] = [Figure.of(chart)]
    sections["Rules"] = findings([asdict(outcome) for outcome in outcomes])
    sentence = f"{len(record.observations)} steps of an smdebug trial. {_summary(outcomes)}"
    write_page(output, Path(trial).name, sections, sentence=sentence)
    return outcomes


def write_profile_page(folder: str, overrides: Sequence[str], output: Path) -> list[Outcome]:
    """Check the profile rules, with the thresholds in `overrides`, on a SageMaker job's profiler output in `folder`.

    Raises UserError if there is no profiler output.
    """
    profile = read_profile(Path(folder).expanduser())
    if not profile.samples and not profile.steps:
        raise UserError(f"profile={folder}: no profiler output found (no system/incremental/*/*.json).")
    content, outcomes = describe(profile, build_rules(overrides, "profile_rules"))
    sentence = f"{len(profile.samples)} samples of the machine. {_summary(outcomes)}"
    write_page(output, Path(folder).name, {"Profile": profile_blocks(content)}, sentence=sentence)
    return outcomes


def _summary(outcomes: Sequence[Outcome]) -> str:
    fired = [outcome.rule for outcome in outcomes if outcome.status == ISSUES]
    return f"Issues found by {', '.join(fired)}." if fired else "The rules found no issues."
