"""Make overrides that Hydra can read: from a file, from `data=DIR`, and with quotes where needed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from imgcls.config.choices import TABLE_SUFFIXES
from imgcls.config.groups import config_dir, is_open, is_option
from imgcls.errors import UserError
from imgcls.models.hub import SCHEME, fetch_start, is_on_hub
from imgcls.system.files import read_yaml

SUFFIXES = (".yaml", ".yml")
FLAGS_WITH_VALUE = ("-cn", "--config-name", "-cp", "--config-path", "-cd", "--config-dir", "-p", "--package")


def expand(arguments: Sequence[str]) -> list[str]:
    """The equivalent arguments that Hydra understands.

    - A file of overrides (a run's `overrides.yaml`, a search's `best.yaml`, a list) is replaced by its content; later
      arguments win over it. What could run code in it is refused without the argument `trust=true`.
    - `data=DIR`, or `data.root=DIR` without a data set, is a folder or an archive of the user's own images:
      `data=imagefolder`. A table of images, as in `data=labels.csv`, is `data=table`.
    - `model.name=hf-hub:user/name` is downloaded, and replaced by the architecture and the file of its weights.
    - `+name=value` sets an option of `conf/` too, which Hydra would only add.
    - A value that Hydra's grammar rejects, such as `data.root=~/data` or `run_dir=runs/größe (1)`, is quoted.
    """
    trust = "trust=true" in arguments
    expanded: list[str] = []
    for place, argument in enumerate(arguments):
        is_name = place > 0 and arguments[place - 1] in FLAGS_WITH_VALUE
        if argument.endswith(SUFFIXES) and not argument.startswith("-") and not is_name and _is_file(argument):
            for override in (listed := read_overrides(file := Path(argument).expanduser())):
                if not trust:
                    _check_harmless(override, file)
            expanded += listed
        elif argument != "trust=true":
            expanded.append(argument)
    return [_quoted(_forced(argument)) for argument in _with_hub_model(_with_own_data(expanded))]


def read_overrides(file: Path) -> list[str]:
    """The overrides in `file`: a list, or a mapping with a list called `overrides`. Raises UserError."""
    try:
        content = read_yaml(file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    overrides = content.get("overrides") if isinstance(content, dict) else content
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise UserError(
            f"{file} contains no overrides. Give a run's overrides.yaml, a search's best.yaml, "
            "or a list such as [optim.lr=0.1]."
        )
    return overrides


def _check_harmless(override: str, file: Path) -> None:
    """Raise UserError if `override`, read from `file`, can do more than set a value."""
    name, _, value = override.replace("\\", "").partition("=")  # Hydra removes backslashes later
    group = name.lstrip("+~").partition("@")[0]
    harmful = (
        override.startswith("-")
        or "_target_" in name + value
        or "${" in name + value
        or "://" in value
        or value.startswith(SCHEME)
        or group.startswith(("hydra", "launch."))
        or group in ("data.url", "search.storage")
        or ((config_dir() / group).is_dir() and "/" in value)
    )
    if harmful:
        raise UserError(
            f"{file} has {override!r}, which can run code or send data elsewhere. "
            "If you trust the maker of the file, add trust=true."
        )


def _is_file(argument: str) -> bool:
    """Whether an argument with the suffix of a file of overrides is one, and not an override with such a value."""
    return "=" not in argument or Path(argument).expanduser().is_file()


def _with_own_data(arguments: list[str]) -> list[str]:
    """Choose `data=imagefolder` for `data=DIR`, and for a `data.root` without a data set."""
    changed = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in ("data", "data.root") and _is_table(value):
            changed += ["data=table", f"data.table={value}"]
        elif name == "data" and _is_place(value):
            changed += ["data=imagefolder", f"data.root={value}"]
        elif name == "data" and value.startswith(("/", "./", "../", "~")):
            raise UserError(f"{argument}: no such folder or table.")
        else:
            changed.append(argument)
    names = {argument.lstrip("+").partition("=")[0].partition("@")[0] for argument in changed}
    if names & {"data.root", "data.table"} and not names & {"data", "experiment"}:
        changed.append("data=table" if "data.table" in names else "data=imagefolder")
    return changed


def _with_hub_model(arguments: list[str]) -> list[str]:
    """Replace `model.name=hf-hub:user/name` by the architecture and the weights, for which it is downloaded."""
    option = "model.name="
    references = [text.removeprefix(option).strip("'\"") for text in arguments if text.startswith(option)]
    if not references or not is_on_hub(references[-1]):
        return arguments
    given = {argument.lstrip("+").partition("=")[0] for argument in arguments}
    if "model.weights" in given:
        raise UserError(f"model.name={references[-1]} has weights of its own: leave model.weights out.")
    start = fetch_start(references[-1])
    found: dict[str, Any] = {"model.weights": start.weights}
    if start.options:
        found["model.options"] = start.options
    if start.stem != "standard":
        found["model.stem"] = start.stem
    if start.channels != 3:
        found["model.in_channels"] = start.channels
    if start.statistics is not None:
        found["data.normalization"] = start.statistics
    kept = [argument for argument in arguments if not argument.startswith(option)]
    named = [f"{name}={in_grammar(value)}" for name, value in found.items() if name not in given]
    return [*kept, f"model.name={start.name}", *named]


def _is_table(value: str) -> bool:
    """Whether `value` is an existing table, or the address of one."""
    plain = value.strip("'\"")
    is_table = plain.lower().endswith(TABLE_SUFFIXES)
    return is_table and (plain.startswith("s3://") or Path(plain).expanduser().is_file())


def _is_place(value: str) -> bool:
    """Whether the `value` of `data=` is an existing path or an address, and not a data set of a group."""
    if value.startswith("s3://"):
        return True
    if any((folder / "data" / f"{value}.yaml").is_file() for folder in (config_dir(), Path.cwd() / "conf")):
        return False
    return bool(value) and Path(value.strip("'\"")).expanduser().exists()


def _forced(argument: str) -> str:
    name = argument.removeprefix("+").partition("=")[0]
    adds = argument.startswith("+") and not argument.startswith("++")
    return f"+{argument}" if adds and "." in name and is_option(name) else argument


def _quoted(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not equals or argument.startswith("-") or _is_readable(argument):
        return argument
    quoted = f"{name}={_in_quotes(value)}"
    return quoted if _is_readable(quoted) else argument


def _in_quotes(value: str) -> str:
    escaped = re.sub(r'(\\*)("|$)', r"\1\1\2", value).replace('"', '\\"')  # backslashes count before a quote only
    return f'"{escaped}"'


def _is_readable(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


Options = str | Sequence[str] | Mapping[str, Any]
"""Overrides as one text, as a list, or as a dictionary of options, which may be nested."""


def as_overrides(options: Options, more: Mapping[str, Any] | None = None) -> list[str]:
    """The overrides that `options`, and `more` of them by name, stand for.

    As on the command line, a `+` before a name adds an argument of a class that is not in `conf/`.

    >>> as_overrides("model=resnet18 data=digits", {"optim": {"lr": 0.1, "+foreach": True}})
    ['model=resnet18', 'data=digits', 'optim.lr=0.1', '+optim.foreach=true']
    """
    if isinstance(options, str):
        overrides = shlex.split(options)
    elif isinstance(options, Mapping):
        overrides = list(_flatten(options))
    else:
        overrides = [str(option) for option in options]
    return [*overrides, *_flatten(more or {})]


def _flatten(options: Mapping[str, Any], place: str = "") -> Iterator[str]:
    for name, value in options.items():
        path = f"{place}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{path}.")
            continue
        sign = "+" if "+" in path else "++" if is_open(path) else ""
        yield f"{sign}{path.replace('+', '')}={in_grammar(value)}"


def in_grammar(value: Any) -> str:
    """`value` in the grammar of overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{in_grammar(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(in_grammar, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    return text if not isinstance(value, str | Path) or re.fullmatch(r"[\w./@-]+", text) else _in_quotes(text)
