"""The options of all files in `conf/`, with their defaults and comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

COMMON = "_base"
"""The file of a group whose options belong to every choice of it."""


class Option(NamedTuple):
    """One option of a configuration file."""

    name: str
    default: str
    comment: str


class Group(NamedTuple):
    """One file in `conf/`."""

    folder: str
    name: str
    about: str
    """Comment at the top of the file."""
    builds_on: tuple[str, ...]
    options: tuple[Option, ...]
    groups: dict[str, str]
    """Groups in its defaults list, with their comments."""


def read(file: Path, conf: Path) -> Group:
    """Read the options of one file, with the names used to override them."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    head = [line[1:].strip() for line in _leading_comment(lines)]
    package = next((line.removeprefix("@package").strip() for line in head if line.startswith("@package")), None)
    folder = file.parent.relative_to(conf).as_posix().removeprefix(".")
    if package is None:
        package = folder.replace("/", ".")
    prefix = "" if package in ("", "_global_") else f"{package}."
    node = yaml.compose(text)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    defaults = next((value for key, value in pairs if key.value == "defaults"), None)
    own = [(key, value) for key, value in pairs if key.value not in ("defaults", "hydra")]
    return Group(
        folder,
        file.stem,
        " ".join(line for line in head if not line.startswith("@")),
        tuple(_builds_on(defaults)),
        tuple(option for key, value in own for option in _options(key, value, prefix, lines)),
        dict(_commented_groups(defaults, lines)),
    )


def _leading_comment(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("#"):
            return
        yield line


def _builds_on(defaults: yaml.Node | None) -> Iterator[str]:
    for entry in defaults.value if isinstance(defaults, yaml.SequenceNode) else []:
        if isinstance(entry, yaml.ScalarNode) and entry.value != "_self_":
            yield entry.value
        elif isinstance(entry, yaml.MappingNode):
            for key, value in entry.value:
                yield f"{key.value.removeprefix('override ').lstrip('/')}={value.value}"


def _commented_groups(defaults: yaml.Node | None, lines: list[str]) -> Iterator[tuple[str, str]]:
    for entry in defaults.value if isinstance(defaults, yaml.SequenceNode) else []:
        if isinstance(entry, yaml.MappingNode):
            for key, value in entry.value:
                if comment := _comment_after(value, lines):
                    yield key.value, comment


def _comment_after(value: yaml.Node, lines: list[str]) -> str:
    line = lines[value.end_mark.line] if value.end_mark.line < len(lines) else ""
    comment = re.match(r"\s*#\s*(.*)", line[value.end_mark.column :])
    return comment[1].strip() if comment else ""


def _options(key: yaml.Node, value: yaml.Node, prefix: str, lines: list[str]) -> Iterator[Option]:
    name = f"{prefix}{key.value}"
    nested = isinstance(value, yaml.MappingNode) and not value.flow_style
    if nested:
        for inner_key, inner in value.value:
            yield from _options(inner_key, inner, f"{name}.", lines)
        return
    start = lines[value.start_mark.line]
    default = start[value.start_mark.column : value.end_mark.column].strip()
    yield Option(name, default, _comment_after(value, lines))


def read_all(conf: Path) -> dict[str, list[Group]]:
    """Read the files of every group, by group name; the base file of a group comes first."""
    groups: dict[str, list[Group]] = {}
    for file in sorted(conf.rglob("*.yaml"), key=lambda path: (path.parent, path.stem != COMMON, path.stem)):
        group = read(file, conf)
        groups.setdefault(group.folder, []).append(group)
    return groups
