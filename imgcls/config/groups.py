"""The folder of the configuration groups, and the options in its files."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imgcls.system.files import read_yaml

NEVER_SUGGESTED = ("experiment",)


def choices_with(option: str, folders: Sequence[Path]) -> list[str]:
    """The choices `group=name` of files with `option`, from the groups in `folders`, sorted.

    >>> from imgcls.config import config_dir
    >>> choices_with("early_stopping.patience", [config_dir()])
    ['early_stopping=patience']
    """
    files = [entry for folder in folders for entry in _files(folder)]
    return sorted({choice for choice, file in files if option in _options_of(file, choice)})


def unknown_options(values: Mapping[str, Any]) -> Iterator[str]:
    """The dotted names in a configuration that are in no file of the groups, and that nothing else would reject.

    Below a `_target_` the class checks its arguments, and a mapping that is empty in `conf/` takes any names.
    """
    known = _all_options(config_dir()) | _all_options(Path.cwd() / "conf")

    def unknown(content: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for name, value in content.items():
            path = f"{prefix}{name}"
            if path not in known:
                yield path
            elif isinstance(value, Mapping) and is_closed(path, value):
                yield from unknown(value, f"{path}.")

    def is_closed(path: str, value: Mapping[str, Any]) -> bool:
        has_class = value.get("_target_") is not None and f"{path}._target_" in known
        return not has_class and any(option.startswith(f"{path}.") for option in known)

    return unknown(values, "")


def is_option(name: str) -> bool:
    """Whether the dotted `name` is an option of a file in `conf/`."""
    return name in _all_options(config_dir())


def is_open(name: str) -> bool:
    """Whether the dotted `name` is below an option that takes any names, such as `callbacks`."""
    known = _all_options(config_dir())
    places = [name[:place] for place, sign in enumerate(name) if sign == "."]
    return any(place in known and not any(each.startswith(f"{place}.") for each in known) for place in places)


def _all_options(folder: Path) -> frozenset[str]:
    """The dotted names of all options in the files of `folder`, and of the mappings they are in."""
    stamps = tuple((file, file.stat().st_mtime_ns) for file in sorted(folder.rglob("*.yaml")))
    return _options_of_all(folder, stamps)


@functools.lru_cache(maxsize=4)
def _options_of_all(folder: Path, stamps: tuple[tuple[Path, int], ...]) -> frozenset[str]:
    names = {name for choice, file in _files(folder) for name in _options_of(file, choice)}
    names |= _options_of(folder / "train.yaml", "=")
    return frozenset(names | {name[:place] for name in names for place, sign in enumerate(name) if sign == "."})


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*.yaml")):
        group = file.parent.relative_to(folder).as_posix()
        if group != "." and not group.startswith(NEVER_SUGGESTED) and not file.stem.startswith("_"):
            yield f"{group}={file.stem}", file


def _options_of(file: Path, choice: str) -> set[str]:
    """The dotted names of the options in `file` and in the files that its defaults list names."""
    try:
        text, content = file.read_text(encoding="utf-8"), read_yaml(file)
    except (OSError, ValueError):
        return set()  # a broken file of the user, which is not what was asked about
    if not isinstance(content, dict):
        return set()
    package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    place = package[1] if package else choice.partition("=")[0].replace("/", ".") or "_global_"
    found = set(_names(content, "" if place == "_global_" else f"{place}."))
    for other in content.get("defaults") or []:
        if isinstance(other, str) and (beside := file.parent / f"{other}.yaml").is_file():
            found |= _options_of(beside, choice)
    return found


def _names(content: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in content.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")


VERSION_BASE = "1.3"


def config_dir() -> Path:
    """The folder of the configuration groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
