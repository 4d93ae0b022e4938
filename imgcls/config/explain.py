"""Hydra's and OmegaConf's errors as one line with the nearest valid names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from imgcls.config.groups import VERSION_BASE, choices_with, config_dir
from imgcls.config.help import find_options
from imgcls.config.hydra_internals import node_of
from imgcls.errors import UserError, nearest
from imgcls.models.names import is_model

OTHER_NAMES = {
    "accumulate_grad_batches": "data.batch_size is the effective batch; data.micro_batch_size splits it.",
    "epochs": "The number of epochs is trainer.max_epochs.",
    "learning_rate": "The learning rate is optim.lr.",
}
"""Names that options have in other libraries, with the advice for those who use them."""


def explain(error: Exception, overrides: list[str], config_name: str) -> UserError:
    """An error of Hydra or OmegaConf, in one line with the nearest valid names."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override}: this cannot be read. Write name=value; quote special characters.")
    if match := re.search(r"Could not find '([^']+)'\s*(?:Available options in '([^']+)':(.*))?", text, re.DOTALL):
        is_data = match[1].startswith("data/")  # whose choice may be a path
        group, _, choice = match[1].partition("/") if is_data else match[1].rpartition("/")
        options = [name for name in (match[3] or "").split("Config search path")[0].split() if name[0] != "_"]
        advice = nearest(choice, options)
        if group == "model" and is_model(choice):
            advice = f"Give a network of timm as model.name={choice}."
        elif not advice.startswith("Did you mean") and find_options([choice]):
            advice += f" Options about it: python -m imgcls options {choice}"
        folder = ", and no such folder or file" if is_data else ""
        return UserError(f"{group}={choice}: there is no {group} called {choice!r}{folder}. {advice}")
    if match := re.search(r"Could not override '([^']+)'. No match in the defaults list", text):
        return UserError(
            f"Unknown option group {match[1]!r}. {nearest(match[1], _known_names(overrides, config_name))}"
        )
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_option(match[1], overrides, config_name)
    if match := re.search(r"(?:Key|Missing key|ConfigKeyError).*?'?([\w.]+)'? is not in struct", text):
        return unknown_option(match[1], overrides, config_name)
    if match := re.search(r"Missing mandatory value: .*full_key: (\S+)", text, re.DOTALL):
        return UserError(f"{match[1]} has no value: give {match[1]}=….")
    first, *rest = (line.strip() for line in text.splitlines() if line.strip())
    detail = next((line for line in rest if "HYDRA_FULL_ERROR" not in line), "")
    return UserError(f"{first} {detail}".strip())


def unknown_option(option: str, overrides: list[str], config_name: str = "train") -> UserError:
    """The error for an option that does not exist."""
    return UserError(f"Unknown option {option!r}. {nearest_option(option, overrides, config_name)}")


def nearest_option(option: str, overrides: list[str], config_name: str) -> str:
    """What to write in the place of `option`, which does not exist."""
    last = option.rpartition(".")[2]
    if last in OTHER_NAMES:
        return OTHER_NAMES[last]
    if chosen := choices_with(option, [config_dir(), Path.cwd() / "conf"]):
        return f"It is an option of {' or '.join(chosen[:3])}."
    return _similar(option, _known_names(overrides, config_name))


def _similar(option: str, known: list[str]) -> str:
    """Advice with the names in `known` nearest to `option`: in its group, or with the same or a similar last part."""
    *above, last = option.split(".")
    place = ""
    for part in above:
        place += f"{next(iter(difflib.get_close_matches(part, _names_in(place, known), n=1)), part)}."
    beside = _names_in(place, known)
    if close := difflib.get_close_matches(last, beside, n=3):
        return f"Did you mean {' or '.join(f'{place}{name}' for name in close)}?"
    if above and not beside and place[:-1] in known:
        return f"{place[:-1]} is null. Set its _target_ first, then {last!r}."
    ends = {name: name.rpartition(".")[2] for name in known}
    alike = [last] if last in ends.values() else difflib.get_close_matches(last, set(ends.values()), n=3, cutoff=0.7)
    if alike:
        found = sorted((name for name in known if ends[name] in alike), key=lambda name: name.count("."))
        return f"Did you mean {' or '.join(found[:3])}?"
    return nearest(option, [f"{place}{name}" for name in beside] or _names_in("", known))


def _names_in(place: str, known: list[str]) -> list[str]:
    return sorted({name.removeprefix(place).partition(".")[0] for name in known if name.startswith(place)})


def _known_names(overrides: list[str], config_name: str) -> list[str]:
    """All option names (dotted) and group names of the composition with the group choices of `overrides`."""
    groups = sorted(path.name for path in config_dir().iterdir() if path.is_dir() and path.name != "hydra")
    parser = OverridesParser.create()
    chosen = {text: parser.parse_override(text).key_or_group for text in overrides}
    choices = [text for text, name in chosen.items() if name in groups or name.startswith("hydra/")]
    for attempt in (choices, []):
        try:
            return [*groups, *_option_names(compose_unchecked(attempt, config_name))]
        except (HydraException, OmegaConfBaseException):
            continue
    return groups


def compose_unchecked(overrides: list[str], config_name: str) -> DictConfig:
    """Compose with Hydra. Raises the errors of Hydra and OmegaConf."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # a command composes within Hydra's own
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
            return hydra.compose(config_name, overrides)
    finally:
        GlobalHydra.instance().hydra = running


def _option_names(cfg: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    if not isinstance(cfg, DictConfig):
        return
    for key in cfg:
        name = f"{prefix}{key!s}"
        if str(key) != "_target_":
            yield name
        if isinstance(child := node_of(cfg, key), DictConfig):
            yield from _option_names(child, f"{name}.")
