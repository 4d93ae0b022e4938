"""The folder of the configuration groups, and which of its files have an option."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

NOT_CHOSEN_FOR_AN_OPTION = ("hydra/help", "experiment")


def choices_with(option: str, folders: Sequence[Path]) -> list[str]:
    """The words `group=name` that choose a file with `option`, of the groups in `folders`, sorted.

    >>> from imgcls.config import config_dir
    >>> choices_with("early_stopping.patience", [config_dir()])
    ['early_stopping=patience']
    """
    return sorted({word for folder in folders for word, file in _files(folder) if option in _options_of(file, word)})


def unknown_options(values: Mapping[str, Any]) -> Iterator[str]:
    """The dotted names in a configuration that no file of the groups has, and that nothing else would refuse.

    Below a `_target_` the class itself knows its arguments, and a mapping that is empty in `conf/` is open.
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


def _all_options(folder: Path) -> frozenset[str]:
    """The names of all options in the files of `folder`, and of the places that they are in."""
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
        if group != "." and not group.startswith(NOT_CHOSEN_FOR_AN_OPTION) and not file.stem.startswith("_"):
            yield f"{group}={file.stem}", file


def _options_of(file: Path, word: str) -> set[str]:
    """The dotted names of the options in `file` and in the files of its group that it begins with."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return set()  # one's own file, which is not what was asked for
    if not isinstance(content, dict):
        return set()
    package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    place = package[1] if package else word.partition("=")[0].replace("/", ".") or "_global_"
    found = set(_names(content, "" if place == "_global_" else f"{place}."))
    for other in content.get("defaults") or []:
        if isinstance(other, str) and (beside := file.parent / f"{other}.yaml").is_file():
            found |= _options_of(beside, word)
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
