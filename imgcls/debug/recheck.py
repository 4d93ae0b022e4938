"""The rules look again at what was recorded of a run, at other thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from imgcls.debug.profile import read_profile, write_profile
from imgcls.debug.rules import Outcome, Rule
from imgcls.debug.storage import read_record, write_outcomes
from imgcls.errors import UserError
from imgcls.runs.provenance import stored_configuration
from imgcls.runs.reading import read_history

OPTIONS = ("debug.rules.", "debug.profile_rules.")


def rules_of(words: Sequence[str] = (), group: str = "rules") -> Mapping[str, Rule]:
    """The `rules` or `profile_rules` of the defaults and of the words `debug.rules.NAME.parameter=value`.

    Raises UserError for a name or value that is not known.
    """
    from hydra.utils import instantiate

    from imgcls.config.composition import compose

    for word in words:
        if not word.startswith(OPTIONS):
            raise UserError(f"{word}: only thresholds can be changed afterwards: {OPTIONS[0]}NAME.parameter=value.")
    rules: Mapping[str, Rule] = instantiate(compose(list(words)).debug[group], _convert_="all")
    return rules


def check_again(folder: Path, words: Sequence[str] = ()) -> list[Outcome]:
    """Check the run in `folder` with its own thresholds and those of `words`; its `debug` holds what is found now.

    Raises UserError where the run was not watched.
    """
    words = [*_own_words(folder), *words]
    rules, profile_rules = rules_of(words), rules_of(words, "profile_rules")
    debug = folder / "debug"
    record = read_record(debug, read_history(folder))
    outcomes = [rule.check(record) for rule in rules.values()]
    write_outcomes(debug, outcomes)
    if (debug / "profile" / "profile.json").is_file():
        write_profile(debug / "profile", read_profile(debug / "profile"), profile_rules)
    return outcomes


def _own_words(folder: Path) -> list[str]:
    """The thresholds of the run that are not the defaults, as words."""
    from imgcls.config.composition import compose, plain

    own = stored_configuration(folder)
    words = []
    for group in ("rules", "profile_rules"):
        held = (own.get("debug") or {}).get(group) or {}
        for name, options in plain(compose())["debug"][group].items():
            for option, default in options.items():
                value = held.get(name, {}).get(option, default)
                if value != default and isinstance(value, int | float):
                    words.append(f"debug.{group}.{name}.{option}={str(value).lower()}")
    return words
