"""Checks the rules again on the record of a run, with other thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from imgcls.debug.profile import read_profile, write_profile
from imgcls.debug.rules import Outcome, Rule
from imgcls.debug.storage import read_record, write_outcomes
from imgcls.errors import UserError
from imgcls.runs.provenance import read_configuration
from imgcls.runs.reading import read_history

THRESHOLDS = ("debug.rules.", "debug.profile_rules.")


def build_rules(overrides: Sequence[str] = (), group: str = "rules") -> Mapping[str, Rule]:
    """The `rules` or `profile_rules` of the defaults and of the overrides `debug.rules.NAME.parameter=value`.

    Raises UserError for an unknown name or an invalid value.
    """
    from hydra.utils import instantiate

    from imgcls.config.composition import compose

    for override in overrides:
        if not override.startswith(THRESHOLDS):
            raise UserError(
                f"{override}: only thresholds can be changed afterwards: {THRESHOLDS[0]}NAME.parameter=value."
            )
    return instantiate(compose(list(overrides)).debug[group], _convert_="all")


def recheck(folder: Path, overrides: Sequence[str] = ()) -> list[Outcome]:
    """Check the run in `folder` with its own thresholds and those in `overrides`; update the outcomes in its `debug`.

    Raises UserError if the run was not watched.
    """
    overrides = [*_stored_thresholds(folder), *overrides]
    rules, profile_rules = build_rules(overrides), build_rules(overrides, "profile_rules")
    debug = folder / "debug"
    record = read_record(debug, read_history(folder))
    outcomes = [rule.check(record) for rule in rules.values()]
    write_outcomes(debug, outcomes)
    if (debug / "profile" / "profile.json").is_file():
        write_profile(debug / "profile", read_profile(debug / "profile"), profile_rules)
    return outcomes


def _stored_thresholds(folder: Path) -> list[str]:
    """The thresholds of the run that differ from the defaults, as overrides."""
    from imgcls.config.composition import compose, plain

    stored = read_configuration(folder).get("debug") or {}
    overrides = []
    for group in ("rules", "profile_rules"):
        rules = stored.get(group) or {}
        for name, options in plain(compose())["debug"][group].items():
            for option, default in options.items():
                value = rules.get(name, {}).get(option, default)
                if value != default and isinstance(value, int | float):
                    overrides.append(f"debug.{group}.{name}.{option}={str(value).lower()}")
    return overrides
