"""Reference of all options, generated from the comments in `conf/` when the documentation is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from imgcls.config import config_dir
from imgcls.config.reference import COMMON, Group, read_all

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PLACE = "<!-- the groups of conf/ -->"


def as_markdown(groups: dict[str, list[Group]]) -> str:
    """One section per group, in the order of the defaults list, with one table per file."""
    parts = []
    about: dict[str, str] = {}
    for whole in groups.get("", []):
        parts += ["## Options of the run", "", *_table(whole), ""]
        about |= whole.groups
    listed = [folder for folder in about if folder in groups]
    for folder in [*listed, *sorted(set(groups) - {"", *listed})]:
        choices = [f"`{group.name}`" for group in groups[folder] if group.name != COMMON]
        parts += [f"## {folder}", ""]
        parts += [f"{_sentence(about[folder])} `{folder}=` is {', '.join(choices)}.", ""] if folder in about else []
        for group in groups[folder]:
            title = f"every `{folder}=`" if group.name == COMMON else f"`{folder}={group.name}`"
            parts += [f"### {title}", ""]
            parts += [group.about, ""] if group.about else []
            if building := [word for word in group.builds_on if word != COMMON]:
                parts += [f"Builds on {', '.join(f'`{word}`' for word in building)}.", ""]
            parts += [*_table(group), ""]
    return "\n".join(parts)


def _sentence(comment: str) -> str:
    return f"{comment[:1].upper()}{comment[1:]}."


def _table(group: Group) -> Iterator[str]:
    options = [option for option in group.options if not option.name.endswith("_target_") or option.comment]
    if not options:
        return
    yield "| option | default | |"
    yield "|---|---|---|"
    for name, default, comment in options:
        yield f"| `{name}` | {_code(default)} | {_escaped(comment)} |"


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def _escaped(text: str) -> str:
    """Escape Markdown in plain text, except inside backticks."""
    parts = text.split("`")
    return "`".join(part if place % 2 else re.sub(r"([|\[\]<>*_$])", r"\\\1", part) for place, part in enumerate(parts))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _fill_in)
    return {"parallel_read_safe": True}


def _fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    if PLACE in source[0]:
        app.env.note_reread()
        source[0] = source[0].replace(PLACE, as_markdown(read_all(config_dir())))
