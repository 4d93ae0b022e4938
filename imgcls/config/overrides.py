"""Overrides as Hydra takes them: those of a file, the user's own data set, and values that need quotes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from imgcls.config.groups import config_dir
from imgcls.errors import UserError

ENDINGS = (".yaml", ".yml")
BEFORE_A_NAME = ("-cn", "--config-name", "-cp", "--config-path", "-cd", "--config-dir", "-p", "--package")


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments that Hydra understands in the same sense as these.

    - A file of overrides (a run's `overrides.yaml`, a search's `best.yaml`, a list) stands for its content; later
      arguments win over it.
    - `data=DIR`, or `data.root=DIR` without a data set, is a folder of the user's own images: `data=imagefolder`.
    - A value that Hydra's grammar refuses, such as `data.root=~/data` or `run_dir=runs/größe (1)`, is quoted.
    """
    expanded: list[str] = []
    for place, argument in enumerate(arguments):
        is_name = place > 0 and arguments[place - 1] in BEFORE_A_NAME
        if argument.endswith(ENDINGS) and not argument.startswith("-") and not is_name and _is_file(argument):
            expanded += read_overrides(Path(argument).expanduser())
        else:
            expanded.append(argument)
    return [_quoted(argument) for argument in _with_own_data(expanded)]


def read_overrides(file: Path) -> list[str]:
    """The overrides in `file`: a list, or a mapping with a list called `overrides`. Raises UserError."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    overrides = content.get("overrides") if isinstance(content, dict) else content
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise UserError(
            f"{file} holds no overrides. Give a run's overrides.yaml, a search's best.yaml, "
            "or a list such as [optim.lr=0.1]."
        )
    return overrides


def _is_file(argument: str) -> bool:
    """Whether an argument that ends like a file of overrides is one, and no override whose value ends so."""
    return "=" not in argument or Path(argument).expanduser().is_file()


def _with_own_data(arguments: list[str]) -> list[str]:
    """`data=DIR` and a `data.root` without a data set name the user's own images."""
    changed = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "data" and _is_place(value):
            changed += ["data=imagefolder", f"data.root={value}"]
        else:
            changed.append(argument)
    names = {argument.lstrip("+").partition("=")[0].partition("@")[0] for argument in changed}
    if "data.root" in names and not names & {"data", "experiment"}:
        changed.append("data=imagefolder")
    return changed


def _is_place(value: str) -> bool:
    """Whether a `data=` is a folder, an archive or an address, and no data set of a configuration group."""
    if value.startswith("s3://"):
        return True
    if any((folder / "data" / f"{value}.yaml").is_file() for folder in (config_dir(), Path.cwd() / "conf")):
        return False
    return bool(value) and Path(value.strip("'\"")).expanduser().exists()


def _quoted(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not equals or argument.startswith("-") or _is_read(argument):
        return argument
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    quoted = f'{name}="{escaped}"'
    return quoted if _is_read(quoted) else argument


def _is_read(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True
