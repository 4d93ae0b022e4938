"""Pages about what imgcls did not record: an smdebug trial, the profiler output of a SageMaker job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from imgcls.debug.profile import describe, read_profile
from imgcls.debug.recheck import build_rules
from imgcls.debug.rules import ISSUES, Outcome
from imgcls.errors import UserError
from imgcls.report import figures
from imgcls.report.page import drawn, outcome_section, profile_section, write_page


def write_trial_page(trial: str, words: Sequence[str], output: Path) -> list[Outcome]:
    """Let the rules, at the thresholds in `words`, look at the smdebug `trial`; write the page `output`.

    Raises UserError where there is no trial, or no smdebug to read it.
    """
    from imgcls.debug.smdebug_trial import read_trial

    rules = build_rules(words)
    record = read_trial(trial)
    outcomes = [rule.check(record) for rule in rules.values()]
    steps = figures.Steps(np.asarray(record.losses), np.asarray(record.rates))
    sections = {}
    if len(steps.loss) > 1 or record.history:
        sections["Learning curves"] = drawn({"charts": {"": figures.learning_curves({trial: record.history}, steps)}})
    sections["Rules"] = outcome_section([asdict(one) for one in outcomes])
    sentence = f"{len(record.observations)} steps of an smdebug trial. {_said(outcomes)}"
    write_page(output, Path(trial).name, sections, sentence=sentence)
    return outcomes


def write_profile_page(folder: str, words: Sequence[str], output: Path) -> list[Outcome]:
    """Let the profile rules, at the thresholds in `words`, look at what a SageMaker job's profiler wrote in `folder`.

    Raises UserError where there is nothing of it.
    """
    profile = read_profile(Path(folder).expanduser())
    if not profile.samples and not profile.steps:
        raise UserError(f"profile={folder}: there is no profiler output (no system/incremental/*/*.json).")
    content, outcomes = describe(profile, build_rules(words, "profile_rules"))
    sentence = f"{len(profile.samples)} samples of the machine. {_said(outcomes)}"
    write_page(output, Path(folder).name, {"Profile": drawn(profile_section(content))}, sentence=sentence)
    return outcomes


def _said(outcomes: Sequence[Outcome]) -> str:
    found = [one.rule for one in outcomes if one.status == ISSUES]
    return f"Issues found by {', '.join(found)}." if found else "The rules found nothing."
