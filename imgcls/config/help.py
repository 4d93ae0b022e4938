"""What `--help` and `python -m imgcls options` print of `conf/`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from imgcls.config.groups import config_dir
from imgcls.config.reference import COMMON, Group, Option, read_all

NAME_WIDTH = 28
USAGE = """\
usage: python -m imgcls train [group=choice …] [group.option=value …] [-m …]

  python -m imgcls train                               handwritten digits, without a network
  python -m imgcls train data=photos model=resnet50    fine-tune on the folder of images ./photos
  python -m imgcls train model.name=convnext_tiny      any other network of timm
  python -m imgcls train -m optim.lr=1e-3,1e-2         one run for each value
"""
FOOTER = (
    "python -m imgcls options WORD finds options by group, name or description. --cfg job shows the configuration "
    "that your overrides compose, --hydra-help the flags of Hydra."
)


def help_of_train(width: int | None = None) -> str:
    """The groups with their choices, and the options of the run, in lines of up to `width` characters."""
    width = width or _terminal_width()
    groups = read_all(config_dir())
    [run] = groups[""]
    lines = [USAGE, "groups:"]
    for name, about in run.groups.items():
        choices = [group.name for group in groups.get(name, []) if not group.name.startswith("_")]
        lines += _row(f"{name}=", f"{about}: {', '.join(choices)}", width)
    lines += ["", "options of the run:"]
    for option in run.options:
        lines += _row(f"{option.name}={option.default}", option.comment, width)
    return "\n".join([*lines, "", *textwrap.wrap(FOOTER, width)])


def find_options(words: Sequence[str], width: int | None = None) -> str:
    """The options whose name, comment or group holds all `words`, in lines of up to `width` characters.

    The files of `conf/` in the current folder are searched too. Empty where there are none.
    """
    width = width or _terminal_width()
    lines: list[str] = []
    for group, choices in _all_groups().items():
        for choice in choices:
            title = _title(group, choice)
            options = [option for option in choice.options if _shows(option)]
            if not _holds(f"{title} {choice.about}", words):
                options = [option for option in options if _holds(f"{title} {option.name} {option.comment}", words)]
                if not options:
                    continue
            lines += ["", *textwrap.wrap(f"{title}: {choice.about}" if choice.about else f"{title}:", width)]
            for option in options:
                lines += _row(f"{option.name}={option.default}", option.comment, width)
    return "\n".join(lines[1:])


def _all_groups() -> dict[str, list[Group]]:
    groups = {name: list(files) for name, files in read_all(config_dir()).items()}
    own = Path.cwd() / "conf"
    if own.is_dir() and own.resolve() != config_dir().resolve():
        for name, files in read_all(own).items():
            groups.setdefault(name, []).extend(files)
    return groups


def _title(group: str, choice: Group) -> str:
    if not group:
        return "options of the run"
    return f"every {group}=" if choice.name == COMMON else f"{group}={choice.name}"


def _shows(option: Option) -> bool:
    return not option.name.endswith("_target_") or bool(option.comment)


def _holds(text: str, words: Sequence[str]) -> bool:
    return all(word.lower() in text.lower() for word in words)


def _row(name: str, comment: str, width: int) -> Iterator[str]:
    """`name` and `comment` in two columns; a long name has a line to itself."""
    wrapped = textwrap.wrap(comment, max(width - NAME_WIDTH - 2, 20)) or [""]
    if len(name) + 1 >= NAME_WIDTH:
        yield f"  {name}"
    else:
        yield f"  {name:{NAME_WIDTH}}{wrapped.pop(0)}".rstrip()
    yield from (f"  {'':{NAME_WIDTH}}{line}".rstrip() for line in wrapped if line)


def _terminal_width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, 120)
